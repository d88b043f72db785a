"""How versions are served, archived and shown."""

from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr, model_validator

from llmos_stream.config.base import MOST, Count, Host, Positive, Section, expanded, no_secret, none_where_empty

Hosts = Annotated[str | None, Field(pattern=r"^(\*|[\w.-]+( *, *[\w.-]+)*)?$")]


class InferenceSettings(Section):
    host: Host = "127.0.0.1"
    """Address of the prediction API; 0.0.0.0 for all, as in a container."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the prediction API (0: any that is free)."""
    token: Annotated[SecretStr | None, AfterValidator(none_where_empty)] = None
    """Bearer token that allows to pin a version, to set the canary share and to go back. Unset: nobody may."""
    canary: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the newest version answers while another one serves."""
    keep: Count = 3
    """How many of the newest versions are held in memory, beside those that are promoted, pinned or rolled back to."""
    max_batch: Count = 64
    """Most examples in one forward pass, and in one request. Of a language model: most requests that are answered at
    once."""
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """How long a request waits for others to share its forward pass."""
    max_waiting: Count = 1024
    """Most examples that wait; a request beyond that is refused (503; 429 where a language model is served)."""
    max_tokens: Count = 512
    """Most tokens of a language model's answer, and how many it may have where the request does not say."""
    cache_tokens: Count = 32_768
    """Most tokens of all requests under way together, of which a language model keeps what attention needs. Others
    wait. More than that, or than the model's context, no request may have."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20
    """Most bytes of a request's body, which must arrive within a minute and never pause for 10 seconds."""
    max_bodies_bytes: Annotated[int, Field(ge=1024, le=MOST)] = 64 << 20
    """Most bytes of all bodies that are read or being answered at a time. Beyond that the one that has waited longest
    for more of itself is broken off (503)."""
    allowed_hosts: Hosts = None
    """Host names, separated by commas, under which the API is answered. Addresses, localhost, this machine's name,
    names without a dot and those of Kubernetes services are always allowed. *: any name."""

    @model_validator(mode="after")
    def _a_batch_may_wait(self) -> Self:
        if self.max_waiting < self.max_batch:
            raise ValueError(f"max_waiting must be at least max_batch ({self.max_batch})")
        if self.max_bodies_bytes < self.max_body_bytes:
            raise ValueError(f"max_bodies_bytes must be at least max_body_bytes ({self.max_body_bytes})")
        return self


def _store(url: str) -> str:
    """`~/models` and `file://~/models` name a folder."""
    scheme, folder = ("file://", url.removeprefix("file://")) if url.startswith("file://~") else ("", url)
    return f"{scheme}{expanded(Path(folder))}" if folder.startswith("~") else url


class RegistrySettings(Section):
    url: Annotated[str, AfterValidator(no_secret), AfterValidator(_store)] | None = None
    """Where versions are archived: a folder or a URL of fsspec, as in file:///srv/models or s3://bucket/path. Unset:
    nowhere."""
    keep: Literal["every", "last", "promoted"] = "every"
    """What is archived. promoted: the promoted version alone. last: that and the last version of the run. every: both
    and every n-th version (see registry.every)."""
    every: Count = 10
    """Archive every n-th version, where registry.keep is every."""
    most: Count | None = None
    """How many archived versions are kept, beside the promoted one and the one promoted before it; the oldest are
    deleted. Unset: all."""


def _addresses(urls: str) -> str:
    for url in _split(urls):
        no_secret(url)
        if not _is_address(url):
            raise ValueError(f"{url!r} is no address such as http://gpu1:8000")
    return urls


def _is_address(url: str) -> bool:
    try:
        found = urlsplit(url)
        return found.scheme in {"http", "https"} and bool(found.hostname) and found.port != 0
    except ValueError:  # the port is no number, or above 65535
        return False


def _split(urls: str) -> list[str]:
    """The addresses, each once."""
    return list(dict.fromkeys(url.strip().rstrip("/") for url in urls.split(",") if url.strip()))


class DeploySettings(Section):
    server: Literal["vllm", "lorax"] = "vllm"
    """What answers with the adapters. vllm: its load and unload endpoints. lorax: requests that name a folder."""
    urls: Annotated[str, AfterValidator(_addresses)] = ""
    """Addresses of the servers, separated by commas, as in http://gpu1:8000, http://gpu2:8000. Each is brought to the
    promoted version by itself."""
    token: Annotated[SecretStr | None, AfterValidator(none_where_empty)] = None
    """Bearer token that the servers ask for (vLLM: --api-key)."""
    folder: Annotated[Path, AfterValidator(expanded)] = Path("adapters")
    """Where adapters are written, a folder each. The servers must be able to read it."""
    seen_as: str | None = None
    """The path of deploy.folder on the servers, where it is another one there. Unset: the same."""
    rank: Count | None = None
    """Rank of adapters that lora.aggregation = exact has made, which are no products. Unset: lora.rank."""
    timeout_seconds: Positive = 120.0
    """How long a server may take to answer."""
    check_seconds: Positive = 10.0
    """How often each server is asked whether it still has the adapter: one that was restarted has forgotten it."""

    @property
    def addresses(self) -> list[str]:
        """The servers' addresses."""
        return _split(self.urls)


class DashboardSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Show the live page on this port (0: any that is free). Unset: not at all."""
    host: Host = "127.0.0.1"
    """Address of the live page; 0.0.0.0 for all, as in a container. Whoever reaches it may look."""
    allowed_hosts: Hosts = None
    """Host names, separated by commas, under which browsers may open the page. Addresses, localhost, this machine's
    name, names without a dot and those of Kubernetes services are always allowed. *: any name."""
    token: Annotated[SecretStr | None, AfterValidator(none_where_empty)] = None
    """Token that allows to pause, resume, finish and promote, in the page or as a bearer token. Unset: nobody may."""
    viewers: Annotated[int, Field(ge=1, le=1000)] = 100
    """Most pages that are kept up to date at a time."""

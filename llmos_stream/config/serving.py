"""What versions are served, archived and shown by."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from llmos_stream.config.base import Count, Section, no_password, none_where_empty


class InferenceSettings(Section):
    host: str = "127.0.0.1"
    """Address that predictions are asked for at; 0.0.0.0 for all, as in a container."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port of the same (0: any that is free)."""
    token: Annotated[SecretStr | None, AfterValidator(none_where_empty)] = None
    """Who sends it as a bearer token may pin, send a share to the newest and go back. Unset: nobody may."""
    canary: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the requests that the newest version answers, where another one serves."""
    keep: Count = 3
    """How many of the newest versions are held in memory, beside those that are promoted, pinned or gone back to."""
    max_batch: Count = 64
    """Examples in one forward pass, and in one request, at most."""
    max_delay_ms: Annotated[float, Field(ge=0, le=10_000)] = 2.0
    """How long a request waits for others to share its forward pass."""
    max_waiting: Count = 1024
    """Examples that wait at most; past that a request is turned away (503)."""
    max_body_bytes: Annotated[int, Field(ge=1024, le=1 << 30)] = 8 << 20
    """Bytes of a request's body at most; it has a minute to come."""

    @model_validator(mode="after")
    def _a_batch_may_wait(self) -> Self:
        if self.max_waiting < self.max_batch:
            raise ValueError(f"max_waiting must be at least max_batch ({self.max_batch})")
        return self


class RegistrySettings(Section):
    url: Annotated[str, Field(min_length=1), AfterValidator(no_password)] | None = None
    """Where versions are archived: a folder or a URL of fsspec, as in file:///srv/models or s3://bucket/path. Unset:
    nowhere."""
    keep: Literal["every", "last", "promoted"] = "every"
    """What is archived: every n-th version, the last of the run and the promoted one; the last and the promoted one;
    the promoted one alone."""
    every: Count = 10
    """Every how many-th version is archived."""
    most: Count | None = None
    """How many versions are kept beside the promoted one and the one before it; the oldest go. Unset: all."""


class DashboardSettings(Section):
    port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """Show the live page on this port (0: any that is free). Unset: not at all."""
    host: str = "127.0.0.1"
    """Address of the same; 0.0.0.0 for all, as in a container. Whoever reaches it may look."""
    allowed_hosts: Annotated[str | None, Field(pattern=r"^(\*|[\w.-]+( *, *[\w.-]+)*)?$")] = None
    """Names, separated by commas, under which browsers may open it, beside addresses, localhost, this machine's name,
    names without a dot and those of Kubernetes services. *: any."""
    token: Annotated[SecretStr | None, AfterValidator(none_where_empty)] = None
    """Who types it into the page, or sends it as a bearer token, may pause, resume and promote. Unset: nobody may."""
    viewers: Annotated[int, Field(ge=1, le=1000)] = 100
    """Pages that are kept up to date at a time."""

"""What inference servers are asked over HTTP, so that they answer with an adapter. Calls block: make them in a thread.

vLLM    POST /v1/load_lora_adapter {lora_name, lora_path}, POST /v1/unload_lora_adapter {lora_name},
        GET /v1/models -> {data: [{id, root}]}, where `root` is the adapter's path
LoRAX   loads what a request names: POST /generate {inputs, parameters: {adapter_id, adapter_source: "local"}}
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from http.client import HTTPException
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import HTTPRedirectHandler, Request, build_opener

import orjson

from llmos_stream.config import DeploySettings
from llmos_stream.errors import LlmosError

logger = logging.getLogger(__name__)

_MOST_BYTES = 1 << 20
_TOLD = 300


class _NoRedirects(HTTPRedirectHandler):
    """Whoever answers could send the token to any address."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(_NoRedirects)


class ServerError(LlmosError):
    """A server does not answer, or not as it should."""

    retriable = True

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Adapter(NamedTuple):
    """An adapter by the name that clients ask for, and its folder as the server sees it."""

    name: str
    path: str


class Server(ABC):
    """One server. `settings` say how long an answer may take, and the token."""

    def __init__(self, url: str, settings: DeploySettings) -> None:
        self.url = url
        self._seconds = settings.timeout_seconds
        self._token = None if settings.token is None else settings.token.get_secret_value()

    @abstractmethod
    def ensure(self, adapter: Adapter) -> str:
        """Have the server answer with an adapter. It costs little where it does so already.

        Returns:
            What clients ask for, as `model`.

        Raises:
            ServerError: It does not.
        """

    @abstractmethod
    def drop(self, prefix: str, keep: Collection[str]) -> None:
        """Have it let go of the adapters whose names are `prefix` and a number, but those of `keep`.

        Raises:
            ServerError: It does not.
        """

    def _get(self, path: str) -> Any:
        return self._call(path, None)

    def _post(self, path: str, body: Mapping[str, object]) -> Any:
        return self._call(path, orjson.dumps(body))

    def _call(self, path: str, body: bytes | None) -> Any:
        """The answer: JSON, or else text."""
        headers = {"Content-Type": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        request = Request(self.url + path, body, headers)  # noqa: S310  the settings allow http and https
        try:
            with _OPENER.open(request, timeout=self._seconds) as answer:
                return _read(answer.read(_MOST_BYTES))
        except HTTPError as error:
            with error:
                said = _message(error.read(_MOST_BYTES))
            raise ServerError(f"{self.url}{path} answers {error.code}: {said}", error.code) from None
        except (OSError, HTTPException, ValueError) as error:  # a name of a host may be no name of any
            # A timeout may hit a server that does go on: `ensure` looks before it asks again.
            raise ServerError(f"{self.url}{path} does not answer ({error or type(error).__name__})") from None


class Vllm(Server):
    """vLLM, started with `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True."""

    def ensure(self, adapter: Adapter) -> str:
        path = self._held().get(adapter.name)
        if path == adapter.path:
            return adapter.name
        if path is not None:  # the same number, of another run
            self._unload(adapter.name)
        try:
            self._post("/v1/load_lora_adapter", {"lora_name": adapter.name, "lora_path": adapter.path})
        except ServerError as error:
            if error.status in {404, 405} and "adapter" not in str(error).rpartition(": ")[2].lower():
                raise ServerError(
                    f"{error}; start vLLM with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", error.status
                ) from None
            raise
        logger.info("%s has loaded %s from %s", self.url, adapter.name, adapter.path)
        return adapter.name

    def drop(self, prefix: str, keep: Collection[str]) -> None:
        for name in self._held():
            if name.startswith(prefix) and name.removeprefix(prefix).isdigit() and name not in keep:
                self._unload(name)

    def _held(self) -> Mapping[str, str]:
        """The paths of all models, by name."""
        answer = self._get("/v1/models")
        try:
            return {str(one["id"]): str(one.get("root")) for one in answer["data"]}
        except (AttributeError, KeyError, TypeError):
            raise ServerError(f"{self.url}/v1/models does not answer as vLLM does") from None

    def _unload(self, name: str) -> None:
        try:
            self._post("/v1/unload_lora_adapter", {"lora_name": name})
        except ServerError as error:
            if error.status != 404:  # gone already
                raise


class Lorax(Server):
    """LoRAX. It loads an adapter at its first request, which is made here, and drops itself what nobody asks for."""

    def ensure(self, adapter: Adapter) -> str:
        parameters = {"adapter_id": adapter.path, "adapter_source": "local", "max_new_tokens": 1}
        answer = self._post("/generate", {"inputs": "1", "parameters": parameters})
        if not isinstance(answer, Mapping) or "generated_text" not in answer:
            raise ServerError(f"{self.url}/generate does not answer as LoRAX does")
        return adapter.path

    def drop(self, prefix: str, keep: Collection[str]) -> None:
        pass


def servers_of(settings: DeploySettings) -> list[Server]:
    """The servers that the settings name."""
    kind = {"vllm": Vllm, "lorax": Lorax}[settings.server]
    return [kind(url, settings) for url in settings.addresses]


def _read(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        return body.decode(errors="replace")


def _message(body: bytes) -> str:
    """What an error says: vLLM has `message`, by itself or in `error`; LoRAX has `error`; FastAPI has `detail`."""
    said = _read(body)
    for name in ("error", "message", "detail"):
        if isinstance(said, Mapping) and name in said:
            said = said[name]
    return " ".join(str(said).split())[:_TOLD] or "nothing"

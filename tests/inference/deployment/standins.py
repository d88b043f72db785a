"""Servers that speak the interface of vLLM and of LoRAX, as far as adapters go. What they load, they really read."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from peft import PeftConfig
from safetensors.torch import load_file
from torch import Tensor

from tests.inference.aids import SECONDS

Body = dict[str, Any]


class StandIn:
    """A server on a port of its own."""

    def __init__(self) -> None:
        self.loaded: dict[str, str] = {}
        """Folders by name."""
        self.weights: dict[str, dict[str, Tensor]] = {}
        """Tensors by folder."""
        self.calls: list[tuple[str, Body]] = []
        """Each request that changes something."""
        self.failures: list[int] = []
        """The next requests that change something get these statuses."""
        self.token: str | None = None
        self.updating = True
        """Whether vLLM was started so that adapters can be loaded."""
        self.slow = threading.Event()
        """While it is set, an adapter is loaded and the answer does not come."""
        self.goes_on = threading.Event()
        self.url = ""

    def names(self) -> set[str]:
        return set(self.loaded)

    def restart(self) -> None:
        """Forget what was loaded."""
        self.loaded = {}

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        raise NotImplementedError

    def get(self, path: str) -> tuple[int, Any]:
        raise NotImplementedError

    def read(self, folder: str) -> bool:
        """Load the folder of an adapter, if it is one."""
        if not (Path(folder) / "adapter_config.json").is_file():
            return False
        PeftConfig.from_pretrained(folder)
        self.weights[folder] = load_file(Path(folder) / "adapter_model.safetensors")
        return True


class StandInVllm(StandIn):
    """The answers are those of vLLM's `serving_models`."""

    def get(self, path: str) -> tuple[int, Any]:
        cards = [{"id": "base", "root": "base"}, *({"id": name, "root": at} for name, at in self.loaded.items())]
        return (200, {"object": "list", "data": cards}) if path == "/v1/models" else (404, {"detail": "Not Found"})

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        name = body["lora_name"]
        if not self.updating:
            return 404, {"detail": "Not Found"}
        if path == "/v1/unload_lora_adapter":
            if self.loaded.pop(name, None) is None:
                return _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
            return 200, f"Success: LoRA adapter '{name}' removed successfully."
        if name in self.loaded:
            return _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not self.read(body["lora_path"]):
            return _error(404, f"No adapter found for {body['lora_path']}", "NotFoundError")
        self.loaded[name] = body["lora_path"]
        return 200, f"Success: LoRA adapter '{name}' added successfully."


class StandInLorax(StandIn):
    """The answers are those of LoRAX's `/generate`."""

    def get(self, path: str) -> tuple[int, Any]:
        return 404, f"nothing at {path}"

    def answer(self, path: str, body: Body) -> tuple[int, Any]:
        wanted = body["parameters"]
        if path != "/generate" or wanted["adapter_source"] != "local":
            return 422, {"error": "no such source", "error_type": "validation"}
        if not self.read(wanted["adapter_id"]):
            return 424, {"error": "Request failed during generation: no adapter there", "error_type": "generation"}
        self.loaded[wanted["adapter_id"]] = wanted["adapter_id"]
        return 200, {"generated_text": " "}


def _error(status: int, message: str, kind: str) -> tuple[int, Any]:
    return status, {"object": "error", "message": message, "type": kind, "code": status}


@contextmanager
def listening(standin: StandIn) -> Iterator[StandIn]:
    """Answer on a port until the block ends."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(*(standin.get(self.path) if self._allowed() else (401, {"error": "Unauthorized"})))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if not self._allowed():
                self._send(401, {"error": "Unauthorized"})
                return
            standin.calls.append((self.path, body))
            if standin.failures:
                self._send(standin.failures.pop(0), {"error": {"message": "out of memory"}})
                return
            answer = standin.answer(self.path, body)
            if standin.slow.is_set():
                standin.goes_on.wait(SECONDS)
            self._send(*answer)

        def _allowed(self) -> bool:
            return standin.token is None or self.headers["Authorization"] == f"Bearer {standin.token}"

        def _send(self, status: int, said: Any) -> None:
            content = said.encode() if isinstance(said, str) else json.dumps(said).encode()
            try:
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)
            except OSError:  # who asked has given up
                self.close_connection = True

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    standin.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield standin
    finally:
        standin.goes_on.set()
        server.shutdown()
        thread.join()
        server.server_close()

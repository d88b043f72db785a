"""Servers are asked for no more than they lack, and what they refuse is told in their words."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.config import DeploySettings
from llmos_stream.inference.deployment.servers import Adapter, Server, ServerError, servers_of
from llmos_stream.training.llm.versions import write_adapter
from tests.inference.deployment.standins import StandInLorax, StandInVllm, listening
from tests.inference.generation.aids import Versions


@pytest.fixture(scope="module")
def adapters(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Adapter]:
    """Three adapters in their folders; the first two are of versions of the same number."""
    versions, found = Versions(tiny), []
    for place, name in enumerate(("laws:1", "laws:1", "laws:2")):
        folder = tmp_path_factory.mktemp(f"adapter{place}")
        write_adapter(versions.settings.task, versions.layout, versions.weights(place), folder)
        found.append(Adapter(name, str(folder)))
    return found


@pytest.fixture
def vllm() -> Iterator[StandInVllm]:
    standin = StandInVllm()
    with listening(standin):
        yield standin


@pytest.fixture
def lorax() -> Iterator[StandInLorax]:
    standin = StandInLorax()
    with listening(standin):
        yield standin


def _server(url: str, **fields: Any) -> Server:
    (server,) = servers_of(DeploySettings(urls=url, **fields))
    return server


def test_vllm_loads_what_it_lacks_and_once(vllm: StandInVllm, adapters: list[Adapter]) -> None:
    server, (first, again, second) = _server(vllm.url), adapters
    for _ in range(2):
        assert server.ensure(first) == "laws:1"
    assert vllm.calls == [("/v1/load_lora_adapter", {"lora_name": "laws:1", "lora_path": first.path})]
    server.ensure(again)  # the same number, of another run
    assert vllm.loaded == {"laws:1": again.path}
    server.ensure(second)
    assert vllm.names() == {"laws:1", "laws:2"}


def test_vllm_lets_go_of_the_federations_others_alone(vllm: StandInVllm) -> None:
    vllm.loaded = dict.fromkeys(("laws:1", "laws:2", "laws:3", "laws:x", "law:1", "sql"), "/a")
    _server(vllm.url).drop("laws:", {"laws:2"})
    assert vllm.names() == {"laws:2", "laws:x", "law:1", "sql"}


def test_what_is_gone_already_need_not_be_unloaded(vllm: StandInVllm) -> None:
    vllm.loaded = {"laws:1": "/a"}
    vllm.failures = [404]
    _server(vllm.url).drop("laws:", ())


@pytest.mark.parametrize("status", [400, 500, 503])
def test_a_refusal_is_told_in_the_servers_words(vllm: StandInVllm, adapters: list[Adapter], status: int) -> None:
    vllm.failures = [status]
    with pytest.raises(ServerError, match=rf"/v1/load_lora_adapter answers {status}: out of memory$") as refused:
        _server(vllm.url).ensure(adapters[0])
    assert refused.value.retriable
    vllm.loaded = {"laws:9": "/a"}
    vllm.failures = [status]
    with pytest.raises(ServerError, match="out of memory"):
        _server(vllm.url).drop("laws:", ())


def test_a_folder_that_the_server_does_not_see_is_told(vllm: StandInVllm, lorax: StandInLorax) -> None:
    with pytest.raises(ServerError, match=r"answers 404: No adapter found for /nowhere$"):
        _server(vllm.url).ensure(Adapter("laws:1", "/nowhere"))
    with pytest.raises(ServerError, match=r"answers 424: Request failed during generation: no adapter there$"):
        _server(lorax.url, server="lorax").ensure(Adapter("laws:1", "/nowhere"))


def test_a_vllm_that_lets_nobody_load_says_how_it_is_to_be_started(vllm: StandInVllm, adapters: list[Adapter]) -> None:
    vllm.updating = False
    with pytest.raises(ServerError, match="--enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"):
        _server(vllm.url).ensure(adapters[0])


def test_the_token_is_sent(vllm: StandInVllm, adapters: list[Adapter]) -> None:
    vllm.token = "let-me"  # noqa: S105
    with pytest.raises(ServerError, match=r"/v1/models answers 401: Unauthorized$"):
        _server(vllm.url).ensure(adapters[0])
    assert _server(vllm.url, token="let-me").ensure(adapters[0]) == "laws:1"  # noqa: S106


def test_the_token_goes_to_nobody_whom_a_server_names(vllm: StandInVllm, adapters: list[Adapter]) -> None:
    heard: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.headers.get("Authorization", ""))
            self.send_response(307)
            self.send_header("Location", f"{vllm.url}{self.path}")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        with pytest.raises(ServerError, match=r"/v1/models answers 307: nothing$"):
            _server(url, token="let-me").ensure(adapters[0])  # noqa: S106
        thread.join()
    assert heard == ["Bearer let-me"]
    assert vllm.calls == []


def test_a_host_that_can_be_none_is_told(adapters: list[Adapter]) -> None:
    for name in ("a..b", "x" * 64 + ".com"):
        with pytest.raises(ServerError, match="does not answer"):
            _server(f"http://{name}:8000").ensure(adapters[0])


def test_a_load_that_takes_too_long_is_not_asked_for_twice(vllm: StandInVllm, adapters: list[Adapter]) -> None:
    vllm.slow.set()
    with pytest.raises(ServerError, match="does not answer"):
        _server(vllm.url, timeout_seconds=0.2).ensure(adapters[0])
    vllm.slow.clear()
    vllm.goes_on.set()
    _server(vllm.url).ensure(adapters[0])
    assert [path for path, _ in vllm.calls] == ["/v1/load_lora_adapter"]


@pytest.mark.parametrize("kind", ["vllm", "lorax"])
def test_nobody_there_and_somebody_else_there_are_told(
    kind: str, adapters: list[Adapter], monkeypatch: pytest.MonkeyPatch
) -> None:
    standin = StandInVllm()
    monkeypatch.setattr(standin, "get", lambda _: (200, "welcome"))
    monkeypatch.setattr(standin, "answer", lambda *_: (200, ["welcome"]))
    with listening(standin):
        server = _server(standin.url, server=kind)
        with pytest.raises(ServerError, match="does not answer as"):
            server.ensure(adapters[0])
    with pytest.raises(ServerError, match="does not answer"):
        server.ensure(adapters[0])


def test_lorax_loads_by_a_request_for_the_folder(lorax: StandInLorax, adapters: list[Adapter]) -> None:
    server = _server(lorax.url, server="lorax")
    assert server.ensure(adapters[0]) == adapters[0].path
    assert lorax.names() == {adapters[0].path}
    server.drop("laws:", ())
    assert lorax.names() == {adapters[0].path}
    ((path, body),) = lorax.calls
    assert path == "/generate"
    assert body["parameters"] == {
        "adapter_id": adapters[0].path,
        "adapter_source": "local",
        "max_new_tokens": 1,
    }


def test_addresses_are_named_once_and_are_addresses() -> None:
    assert DeploySettings(urls=" http://a:1/, http://b:2,http://a:1 ").addresses == ["http://a:1", "http://b:2"]
    for wrong in ("gpu1:8000", "file:///etc", "http://me:secret@gpu1:8000"):
        with pytest.raises(ValueError, match=r"no address such as|leave user and password out"):
            DeploySettings(urls=wrong)

"""No page of another site reads through a browser what is answered here, whatever its name leads to."""

import httpx
import pytest
from starlette.responses import Response

from llmos_stream.web import guards
from llmos_stream.web.guards import HostCheck, name_of


@pytest.fixture(autouse=True)
def _machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guards, "gethostname", lambda: "Box.example.net")


async def _ask(host: str, *allowed: str) -> httpx.Response:
    app = HostCheck(Response("here"), "127.0.0.1", ", ".join(allowed), "some.setting")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        return await http.get("/", headers={b"host": host.encode()})


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1:8090",
        "10.1.2.3",
        "[::1]:8090",
        "[fe80::1]",
        "localhost:8090",
        "LOCALHOST.",
        "page.localhost",
        "monitor:8090",
        "monitor.llmos.svc",
        "monitor.llmos.svc.cluster.local:8090",
        "box.example.net:8090",
        "gateway.example.org",
        "Gateway.Example.Org:443",
    ],
)
async def test_who_means_this_machine_is_answered(host: str) -> None:
    assert (await _ask(host, "gateway.example.org")).text == "here"


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8090",
        "127.0.0.1.evil.example",
        "localhost.evil.example:8090",
        "xlocalhost.example",
        "sub.gateway.example.org",
        "gateway.example.org.evil.example",
        "evil.example.",
    ],
)
async def test_who_means_another_site_is_not(host: str) -> None:
    answer = await _ask(host, "gateway.example.org")
    assert answer.status_code == 421
    assert "some.setting" in answer.json()["detail"]
    assert host[:20] in answer.json()["detail"]


async def test_any_name_where_the_settings_say_so() -> None:
    assert (await _ask("evil.example", "*")).text == "here"


async def test_what_is_said_of_a_name_is_short_and_plain() -> None:
    answer = await _ask("é\x7f" + 5000 * ".evil")
    assert answer.status_code == 421
    assert answer.text.isascii()
    assert len(answer.text) < 250


def test_names() -> None:
    assert [name_of(host) for host in ("[::1]:1", "a.b:1", "A.b.", "")] == ["::1", "a.b", "a.b", ""]

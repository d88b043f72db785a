"""What the page's application answers: its files, its state, and an operator's acts."""

import httpx
import pytest
import zstandard

from llmos_stream.config import DashboardSettings
from llmos_stream.errors import (
    BrokerUnavailable,
    ConfigError,
    FederationFinished,
    LlmosError,
    OffsetGone,
    TopicMissing,
)
from llmos_stream.registry import StoreUnavailable
from llmos_stream.types import EventKind
from tests.dashboard.aids import NOW, TOKEN, event, head, shown


async def test_the_page_loads_nothing_from_elsewhere() -> None:
    async with shown() as here:
        page = await here.http.get("/")
        assert page.status_code == 200
        assert "http" not in page.text.replace("http-equiv", "")
        assert "<style" not in page.text
        assert "style=" not in page.text
        assert page.text.count("<script") == 1
        for answer in (page, await here.http.get("/api/state"), await here.http.get("/static/none.js")):
            policy = answer.headers["content-security-policy"]
            assert "default-src 'none'" in policy
            assert "script-src 'self';" in policy
            assert answer.headers["x-content-type-options"] == "nosniff"
            assert answer.headers["referrer-policy"] == "no-referrer"
        names = [part.split('"')[0] for part in page.text.split('="/static/')[1:]]
        assert len(names) > 12
        for name in names:
            assert (await here.http.get(f"/static/{name}")).status_code == 200, name


async def test_files_are_not_sent_twice_and_plotly_is_kept_for_good() -> None:
    async with shown() as here:
        first = await here.http.get("/static/page.css", headers={"accept-encoding": "gzip"})
        assert first.headers["content-encoding"] == "gzip"
        assert first.headers["cache-control"] == "no-cache"
        again = await here.http.get("/static/page.css", headers={"if-none-match": first.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        name = (await here.http.get("/")).text.split('data-plotly="')[1].split('"')[0]
        async with here.http.stream("GET", name, headers={"accept-encoding": "zstd, gzip"}) as answer:
            body = b"".join([part async for part in answer.aiter_raw()])
            assert answer.headers["content-encoding"] == "zstd"
            assert "immutable" in answer.headers["cache-control"]
        plain = await here.http.get(name, headers={"accept-encoding": "identity"})
        assert "content-encoding" not in plain.headers
        assert zstandard.ZstdDecompressor().decompress(body) == plain.content
        assert len(body) < len(plain.content) / 3


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/static/%2e%2e%2f%2e%2e%2fconfig.py",
        "/static//etc/passwd",
        "/static/",
        "/static/index.html%00.js",
        "/nothing",
        "/api/versions/-1",
        "/api/versions/x",
        "/api/versions/" + "9" * 5000,
        "/api/versions/%D9%A1",
    ],
)
async def test_there_is_nothing_beside_the_files(path: str) -> None:
    async with shown() as here:
        request = httpx.Request("GET", "http://test/")
        request.url = httpx.URL("http://test").copy_with(raw_path=path.encode())
        answer = await here.http.send(request)
        assert answer.status_code == 404
        assert b"import" not in answer.content


async def test_the_state_for_scripts() -> None:
    async with shown() as here:
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=3, lag=2))
        here.view.add_version(head(3), 0, 17)
        state = (await here.http.get("/api/state")).json()
        assert state["headline"]["version"] == 3
        assert state["headline"]["lag"] == 2
        assert state["may_operate"] is True
        assert [row["number"] for row in state["versions"]] == [3]


async def test_a_version_with_its_provenance() -> None:
    async with shown() as here:
        missing = await here.http.get("/api/versions/3")
        assert missing.status_code == 503
        assert missing.json()["detail"] == "there is no broker in this test; try again"
        here.view.add_version(head(3), 0, 17)
        found = (await here.http.get("/api/versions/3")).json()
        assert (found["parent"], found["offset"], found["codec"]) == (2, 17, "float32")
        assert found["weights_digest"] == (3).to_bytes(32, "big").hex()
        one = found["contributions"][1]
        assert (one["client"], one["staleness"], one["share"], one["offset"]) == ("client-1", 1, 0.5, 31)
        assert one["digest"] == (b"d" * 32).hex()
        here.older.waiting = 8
        assert (await here.http.get("/api/versions/3")).status_code == 200
        busy = await here.http.get("/api/versions/2")
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "5")


async def test_acts_with_the_token() -> None:
    async with shown() as here:
        assert (await here.post("/api/pause")).json() == {"paused": True}
        assert (await here.post("/api/resume")).json() == {"paused": False}
        assert (await here.post("/api/promote", {"version": 12})).json() == {"promoted": 12}
        assert (await here.post("/api/finish")).json() == {"finished": True}
        assert here.acts.done == ["pause", "resume", 12, "finish"]


@pytest.mark.parametrize("path", ["/api/pause", "/api/resume", "/api/promote", "/api/finish"])
async def test_nobody_acts_without_the_token(path: str) -> None:
    async with shown() as here:
        for token in (None, "", "let-me-i", TOKEN + "n", "lét-me-in"):
            headers = {} if token is None else {b"authorization": f"Bearer {token}".encode()}
            answer = await here.http.post(path, json={"version": 1}, headers=headers)
            assert answer.status_code == 401
            assert answer.headers["www-authenticate"] == "Bearer"
            assert TOKEN not in answer.text
        basic = await here.http.post(path, json={}, headers={"authorization": f"Basic {TOKEN}"})
        assert basic.status_code == 401
        assert (await here.http.get(path)).status_code == 405
    for nothing in (None, ""):
        async with shown(token=nothing) as closed:
            for answer in (
                await closed.post(path, {"version": 1}),
                await closed.http.post(path, json={"version": 1}, headers={"authorization": "Bearer "}),
            ):
                assert answer.status_code == 403
                assert "LLMOS_DASHBOARD__TOKEN" in answer.json()["detail"]
        assert here.acts.done == closed.acts.done == []


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b'{"version": 1}', "text/plain", 422),
        (b'{"version": 1}', "application/x-www-form-urlencoded", 422),
        (b"{", "application/json", 422),
        (b"[1]", "application/json", 422),
        (b"{}", "application/json", 422),
        (b'{"version": "1"}', "application/json", 422),
        (b'{"version": true}', "application/json", 422),
        (b'{"version": -1}', "application/json", 422),
        (b'{"version": 99999999999999999999}', "application/json", 422),
        (b'{"version": 1, "more": "' + b"x" * 5000 + b'"}', "application/json", 413),
        (b'{"version": 1}', "application/json; charset=utf-8", 200),
    ],
)
async def test_bodies(content: bytes, kind: str, status: int) -> None:
    async with shown() as here:
        headers = {"authorization": f"Bearer {TOKEN}", "content-type": kind}
        answer = await here.http.post("/api/promote", content=content, headers=headers)
        assert answer.status_code == status
        assert len(here.acts.done) == (status == 200)
        assert status == 200 or answer.json()["detail"]


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (ConfigError("version 7 is not in the log"), 404, "version 7"),
        (TopicMissing("t"), 409, "start its aggregator"),
        (FederationFinished("it has ended: target"), 409, "target"),
        (BrokerUnavailable("no Kafka answers"), 503, "try again"),
        (StoreUnavailable("the registry at s3://models: TimeoutError"), 503, "s3://models"),
        (OffsetGone("offset 7 is gone"), 500, "offset 7"),
    ],
)
async def test_what_goes_wrong_is_said(error: LlmosError, status: int, said: str) -> None:
    async with shown() as here:
        here.acts.fails = error
        answer = await here.post("/api/promote", {"version": 7})
        assert answer.status_code == status
        assert said in answer.json()["detail"]


async def test_a_finished_run_is_not_paused_but_its_versions_are_promoted() -> None:
    async with shown() as here:
        here.view.add_event(event(EventKind.RUN_FINISHED, reason="target"))
        assert (await here.post("/api/pause")).status_code == 409
        assert (await here.post("/api/finish")).status_code == 409
        assert (await here.post("/api/promote", {"version": 1})).status_code == 200


async def test_the_clock_is_the_servers() -> None:
    async with shown() as here:
        assert here.view.now_ms == int(NOW * 1000)


async def test_another_sites_name_reads_nothing() -> None:
    async with shown(host="page.example.org", allowed_hosts="gateway.example.org, other.example.org") as here:
        for path in ("/", "/static/main.js", "/api/state", "/api/events", "/api/versions/1"):
            answer = await here.http.get(path, headers={"host": "evil.example:8090"})
            assert answer.status_code == 421
            assert "dashboard.allowed_hosts" in answer.json()["detail"]
            assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await here.post("/api/pause")).status_code == 200
        for name in ("127.0.0.1:8090", "monitor", "page.example.org", "gateway.example.org", "other.example.org:443"):
            assert (await here.http.get("/api/state", headers={"host": name})).status_code == 200
    async with shown(allowed_hosts="*") as anybody:
        assert (await anybody.http.get("/", headers={"host": "evil.example"})).status_code == 200


@pytest.mark.parametrize("said", ["a b", "http://a.b", "a.b,", "*.b", "a.b:1"])
def test_allowed_hosts_are_names(said: str) -> None:
    with pytest.raises(ValueError, match="allowed_hosts"):
        DashboardSettings(allowed_hosts=said)

"""The page beside a real run: what it says of it, and what its acts do."""

import sys

import httpx
import pytest

from llmos_stream.testing import until
from tests.cli.aids import Run as Command
from tests.cli.fixtures import _own_terminal_and_home, llmos
from tests.dashboard.aids import SECONDS, TOKEN
from tests.dashboard.run import FEDERATION, running

__all__ = ["_own_terminal_and_home", "llmos"]

_HEADERS = {"authorization": f"Bearer {TOKEN}"}


async def test_a_run_is_shown_paused_resumed_promoted_and_finished() -> None:
    async with running() as run, httpx.AsyncClient(base_url=run.where, headers=_HEADERS, timeout=SECONDS) as http:
        await run.until_version(3)

        async def provenance() -> bool:
            return [row["number"] for row in (await run.state())["versions"]][:4] == [0, 1, 2, 3]

        await until(provenance)
        state = await run.state()
        assert state["federation"] == FEDERATION
        assert state["headline"]["status"] == "training"
        assert {row["id"] for row in state["clients"]["rows"]} >= {"client-0", "client-1"}
        version = (await http.get("/api/versions/2")).json()
        assert len(version["contributions"]) == 2
        assert version["weights_digest"] == state["versions"][2]["digest"]

        async def is_now(status: str) -> bool:
            return bool((await run.state())["headline"]["status"] == status)

        assert (await http.post("/api/pause", json={})).status_code == 200
        await until(lambda: is_now("paused"))
        assert (await http.post("/api/resume", json={})).status_code == 200
        await until(lambda: is_now("training"))
        nowhere = await http.post("/api/promote", json={"version": 999_999})
        assert nowhere.status_code == 404
        assert "999999" in nowhere.json()["detail"]
        assert (await http.post("/api/promote", json={"version": 2})).status_code == 200

        async def is_promoted() -> bool:
            return bool((await run.state())["headline"]["promoted"] == 2)

        await until(is_promoted)
        assert (await http.post("/api/finish", json={})).json() == {"finished": True}
        await until(lambda: is_now("finished"))
        assert (await http.post("/api/finish", json={})).status_code == 409


def test_a_page_without_its_libraries_says_what_to_install(llmos: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("llmos_stream.dashboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(sys.modules["llmos_stream"], "dashboard", raising=False)
    monkeypatch.setitem(sys.modules, "starlette.applications", None)
    done = llmos("monitor", "--dashboard.port", "0")
    assert done.status == 2
    assert "pip install -e '.[dashboard]'" in done.error()


def test_the_token_is_no_flag(llmos: Command) -> None:
    assert "dashboard.token" not in llmos("monitor", "--help").out

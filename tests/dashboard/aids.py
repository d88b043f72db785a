"""The page put together without a broker: a view that tests feed, behind the real application and a real port."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import orjson
from starlette.applications import Starlette

from llmos_stream.broker import Broker
from llmos_stream.config import DashboardSettings
from llmos_stream.dashboard.app import OperatorActions, make_app
from llmos_stream.dashboard.assets import load_assets
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.dashboard.page_state import page_state
from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.runtime import Shutdown
from llmos_stream.testing import until
from llmos_stream.types import CodecId, CodecSpec, Contribution, Event, EventKind, VersionHead, VersionKind
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.server import serve_http
from llmos_stream.web.timeouts import ConnectionLimits

SECONDS = 30.0
TOKEN = "let-me-in"  # noqa: S105
NOW = 1_760_000_000.0
_LIMITS = ConnectionLimits()


class Acts:
    """An operator whose acts are noted; `fails` is raised in their place."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.fails: Exception | None = None

    async def set_paused(self, paused: bool) -> None:
        await self._note("pause" if paused else "resume")

    async def promote(self, number: int) -> None:
        await self._note(number)

    async def finish(self) -> None:
        await self._note("finish")

    async def _note(self, act: object) -> None:
        if self.fails is not None:
            raise self.fails
        self.done.append(act)


class Shown:
    """The application and what is behind it. The clock stands still unless a test moves it."""

    def __init__(
        self, app: Starlette, view: FederationView, states: StateStream, acts: Acts, older: OlderVersions
    ) -> None:
        self.older = older
        self.app = app
        self.view = view
        self.states = states
        self.acts = acts
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url="http://test")

    async def post(self, path: str, body: object = None, token: str | None = TOKEN) -> httpx.Response:
        headers = {} if token is None else {"authorization": f"Bearer {token}"}
        return await self.http.post(path, json=body or {}, headers=headers)


def _no_broker() -> Broker:
    raise BrokerUnavailable("there is no broker in this test")


@contextlib.asynccontextmanager
async def shown(log: Callable[[], Broker] = _no_broker, **fields: Any) -> AsyncIterator[Shown]:
    """`log` is where older versions are looked up."""
    settings = DashboardSettings(**{"port": 0, "token": TOKEN, **fields})
    view = FederationView("trial", clock=lambda: NOW)
    may = settings.token is not None
    states = StateStream(lambda: page_state(view, may), lambda: view.changes, lambda: view.now_ms, settings.viewers)
    acts = Acts()
    operator = OperatorActions(acts.set_paused, acts.promote, acts.finish)
    older = OlderVersions(log, "trial")
    here = Shown(make_app(settings, view, states, load_assets(), operator, older), view, states, acts, older)
    async with here.http:
        yield here


@contextlib.asynccontextmanager
async def on_a_port(
    here: Shown, shutdown: Shutdown, number: int = 0, limits: ConnectionLimits = _LIMITS
) -> AsyncIterator[str]:
    """The same on a port of the loopback, kept new; yields its address and ends with the block."""
    place = ListenAddress("dashboard", "127.0.0.1", number)
    with heard_port() as port:
        serving = asyncio.gather(
            serve_http(here.app, place, "the live page is", shutdown, 2.0, strict=True, limits=limits),
            here.states.run(shutdown),
        )
        try:
            await until(lambda: port() is not None or serving.done())
            yield f"http://127.0.0.1:{port()}"
        finally:
            shutdown.request()
            async with asyncio.timeout(SECONDS):
                await serving


@contextlib.contextmanager
def heard_port() -> Iterator[Callable[[], int | None]]:
    """The port that the live page says it is on, once it has."""
    said: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "the live page is on" in record.getMessage():
                said.append(record.getMessage())

    log, handler = logging.getLogger("llmos_stream.web.server"), Listening()
    level = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield lambda: int(said[-1].rpartition(":")[2]) if said else None
    finally:
        log.removeHandler(handler)
        log.setLevel(level)


class Stream:
    """The server-sent events of one viewer, decoded."""

    def __init__(self, response: httpx.Response) -> None:
        self.lines = response.aiter_lines()

    async def next(self) -> tuple[str, Any]:
        """The next event but for beats: its name and its data."""
        name = ""
        async with asyncio.timeout(SECONDS):
            async for line in self.lines:
                if line.startswith("event: "):
                    name = line.removeprefix("event: ")
                elif line.startswith("data: ") and name != "beat":
                    return name, orjson.loads(line.removeprefix("data: "))["data"]
        raise AssertionError("the stream has ended")


def event(kind: EventKind, seconds: float = 0.0, role: str = "aggregator", /, **data: object) -> Event:
    return Event(kind, role, int((NOW + seconds) * 1000), data)


def head(number: int, clients: int = 2, name: str = "client-") -> VersionHead:
    return VersionHead(
        number=number,
        parent=number - 1 if number else None,
        kind=VersionKind.FULL,
        layout_digest=bytes(32),
        codec=CodecSpec(CodecId.FLOAT32),
        payload_size=1000 + number,
        payload_digest=b"p" * 32,
        weights_digest=number.to_bytes(32, "big"),
        time_ms=int(NOW * 1000) + number,
        manifest=tuple(
            Contribution(f"{name}{index}", number, 0, 10 * number + index, 50, index, 50.0, 1.0, b"d" * 32)
            for index in range(clients if number else 0)
        ),
        rule={"strategy": "fedbuff"},
        build={"torch": "2"},
    )

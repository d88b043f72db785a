"""Bodies of requests: those that stall or are too many hold no memory and shut nobody out."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from llmos_stream.web.bodies import BodyLimit

_SECONDS = 20.0
_KIB = b"x" * 1024


async def _length(scope: Scope, receive: Receive, send: Send) -> None:
    body = await Request(scope, receive).body()
    await Response(str(len(body)))(scope, receive, send)


class Stalled:
    """A request whose body stops coming after some parts of a KiB."""

    def __init__(self, app: BodyLimit, parts: int) -> None:
        self.status: int | None = None
        self.held = asyncio.Event()
        self._left = parts
        self.task = asyncio.create_task(app({"type": "http", "path": "/", "headers": []}, self._receive, self._send))

    async def _receive(self) -> Message:
        if self._left:
            self._left -= 1
            return {"type": "http.request", "body": _KIB, "more_body": True}
        self.held.set()
        await asyncio.Event().wait()
        raise AssertionError("nothing comes")

    async def _send(self, message: Message) -> None:
        self.status = message.get("status", self.status)


@contextlib.asynccontextmanager
async def _stalled(app: BodyLimit, count: int, parts: int) -> AsyncIterator[list[Stalled]]:
    """Bodies that stall, begun one after the other."""
    begun = []
    async with asyncio.timeout(_SECONDS):
        for _ in range(count):
            begun.append(Stalled(app, parts))
            await begun[-1].held.wait()
    yield begun
    for one in begun:
        one.task.cancel()
    await asyncio.wait([one.task for one in begun])


def _asked(app: BodyLimit) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")


async def test_stalled_bodies_are_broken_off_for_others_the_oldest_first() -> None:
    app = BodyLimit(_length, 8 * 1024, held_bytes=32 * 1024, stall_seconds=600)
    async with _stalled(app, count=40, parts=7) as begun, _asked(app) as http:
        answer = await http.post("/", content=_KIB * 8)
        assert (answer.status_code, answer.text) == (200, str(8 * 1024))
        async with asyncio.timeout(_SECONDS):
            await asyncio.wait([one.task for one in begun[:36]])
        assert [one.status for one in begun] == [503] * 37 + [None] * 3
        assert app._held._bytes == 3 * 7 * 1024


async def test_a_body_that_stops_coming_is_let_go() -> None:
    app = BodyLimit(_length, 8 * 1024, stall_seconds=0.01)
    async with _stalled(app, count=1, parts=2) as (one,):
        async with asyncio.timeout(_SECONDS):
            await one.task
        assert one.status == 408
        assert app._held._bytes == 0


async def test_bodies_that_are_being_answered_keep_their_room() -> None:
    go, asked = asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, receive: Receive, send: Send) -> None:
        asked.set()
        await go.wait()
        await _length(scope, receive, send)

    app = BodyLimit(slow, 8 * 1024, held_bytes=12 * 1024)
    async with _asked(app) as http, asyncio.timeout(_SECONDS):
        first = asyncio.create_task(http.post("/", content=_KIB * 8))
        await asked.wait()
        second = await http.post("/", content=_KIB * 8)
        assert (second.status_code, second.headers["retry-after"]) == (503, "1")
        go.set()
        assert (await first).text == str(8 * 1024)
        assert (await http.post("/", content=_KIB * 8)).status_code == 200


@pytest.mark.parametrize(
    ("path", "size", "status"), [("/", 8, 200), ("/", 9, 413), ("/large", 9, 200), ("/large", 17, 413)]
)
@pytest.mark.parametrize("told", [True, False], ids=["with its size", "in pieces"])
async def test_each_path_has_a_limit(path: str, size: int, status: int, told: bool) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(size):
            yield _KIB

    app = BodyLimit(_length, 8 * 1024, {"/large": 16 * 1024})
    async with _asked(app) as http:
        content: Callable[[], object] = (lambda: _KIB * size) if told else pieces
        assert (await http.post(path, content=content())).status_code == status  # type: ignore[arg-type]
        declared = await http.post("/", content=b"", headers={"content-length": "9" * 5000})
        assert declared.status_code == 413

"""Connections that bring half a request, or take no answer, are let go; those that do what they should are not."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator
from typing import ClassVar
from unittest.mock import Mock

import pytest
from starlette.types import Receive, Scope, Send

from llmos_stream.runtime import Shutdown
from llmos_stream.web.addresses import ListenAddress
from llmos_stream.web.bodies import BodyLimit
from llmos_stream.web.server import serve_http
from llmos_stream.web.timeouts import ConnectionLimits, TimedConnection, with_limits

SECONDS = 60.0
WHOLE = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 4\r\n\r\n"
HALVES = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\nhost: x\r\n",
    "a head": POST,
    "half a body": POST + b"ab",
    "a second head": WHOLE + POST,
}
both = pytest.mark.parametrize("strict", [False, True], ids=["httptools", "h11"])


def _limits(head: float, body: float, stall: float, connections: int = 1024) -> ConnectionLimits:
    return ConnectionLimits(head_seconds=head, body_seconds=body, stall_seconds=stall, connections=connections)


class App:
    """Answers `ok`; for `/stream` when `more` is set, and for `/endless` as much as is taken, until nobody is there."""

    def __init__(self) -> None:
        self.more = asyncio.Event()
        self.left = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/endless":
            assert (await receive())["type"] == "http.request"
            gone = asyncio.ensure_future(receive())
            while not gone.done():
                await send({"type": "http.response.body", "body": bytes(1 << 16), "more_body": True})
                await asyncio.sleep(0)
            self.left.set()
        elif scope["path"] == "/stream":
            await send({"type": "http.response.body", "body": b"first", "more_body": True})
            await self.more.wait()
        await send({"type": "http.response.body", "body": b"ok"})


@contextlib.asynccontextmanager
async def answering(
    app: App, limits: ConnectionLimits, strict: bool, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[tuple[str, int]]:
    caplog.set_level(logging.INFO, "llmos_stream.web.server")
    shutdown, place = Shutdown(), ListenAddress("test", "127.0.0.1", 0)
    limited = BodyLimit(app, max_bytes=1 << 20)
    serving = asyncio.ensure_future(
        serve_http(limited, place, "answering", shutdown, 5.0, strict=strict, limits=limits)
    )
    async with asyncio.timeout(SECONDS):
        while not (said := [record.getMessage() for record in caplog.records if "answering on" in record.getMessage()]):
            assert not serving.done()
            await asyncio.sleep(0)
    try:
        yield "127.0.0.1", int(said[-1].rpartition(":")[2])
    finally:
        app.more.set()
        shutdown.request()
        async with asyncio.timeout(SECONDS):
            await serving


async def _to_the_end(reader: asyncio.StreamReader) -> bytes:
    """All that comes until the other side ends the connection, however it does."""
    said = b""
    async with asyncio.timeout(SECONDS):
        with contextlib.suppress(ConnectionResetError):
            while part := await reader.read(1 << 16):
                said += part
    return said


async def _is_answered(where: tuple[str, int], times: int = 1) -> None:
    """Over one connection."""
    reader, writer = await asyncio.open_connection(*where)
    async with asyncio.timeout(SECONDS):
        for _ in range(times):
            writer.write(WHOLE)
            assert b" 200 " in await reader.readuntil(b"\r\n\r\n")
            await reader.readuntil(b"ok\r\n0\r\n\r\n")
    writer.close()
    await writer.wait_closed()


@both
@pytest.mark.parametrize("half", HALVES.values(), ids=HALVES.keys())
async def test_who_brings_half_a_request_is_let_go(half: bytes, strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(App(), _limits(0.25, 0.25, 600), strict, caplog) as where:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(half)
        assert (await _to_the_end(reader)).count(b" 200 ") == half.count(WHOLE)
        writer.close()
        await _is_answered(where)


@both
async def test_half_a_request_after_a_whole_one_is_let_go(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(App(), _limits(0.25, 0.25, 600), strict, caplog) as where:
        for half in HALVES.values():
            if not half:
                continue  # it is idle then, which is another time limit's
            reader, writer = await asyncio.open_connection(*where)
            writer.write(WHOLE)
            async with asyncio.timeout(SECONDS):
                await reader.readuntil(b"ok\r\n0\r\n\r\n")
            writer.write(half)
            await _to_the_end(reader)
            writer.close()


@both
async def test_who_sends_byte_by_byte_gains_no_time(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    async with answering(App(), _limits(0.2, 600, 600), strict, caplog) as where:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        ended = asyncio.ensure_future(_to_the_end(reader))
        async with asyncio.timeout(SECONDS):
            while not ended.done():
                writer.write(b"x")
                await asyncio.wait([ended], timeout=0.01)
        assert await ended == b""
        writer.close()


@both
async def test_streams_and_idle_connections_are_left_in_peace(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The deadlines are of what is owed: a stream that lasts, and a connection between two requests, owe nothing."""
    app = App()
    async with answering(app, _limits(0.25, 0.25, 0.25), strict, caplog) as where:
        reader, writer = await asyncio.open_connection(*where)
        writer.write(b"GET /stream HTTP/1.1\r\nhost: x\r\n\r\n")
        idle_reader, idle_writer = await asyncio.open_connection(*where)
        idle_writer.write(WHOLE)
        async with asyncio.timeout(SECONDS):
            await reader.readuntil(b"first\r\n")
            await idle_reader.readuntil(b"ok\r\n0\r\n\r\n")
            late_reader, _ = late = await asyncio.open_connection(*where)
            assert await late_reader.read() == b""  # so the times of both would be over, were there any
            idle_writer.write(WHOLE)
            await idle_reader.readuntil(b"ok\r\n0\r\n\r\n")
            app.more.set()
            await reader.readuntil(b"ok\r\n0\r\n\r\n")
        for end in (writer, idle_writer, late[1]):
            end.close()


@both
async def test_one_who_does_not_read_is_let_go(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Its system still acknowledges what comes, with no room: TCP alone waits for as long as it does."""
    app = App()
    async with answering(app, _limits(600, 600, 0.1), strict, caplog) as where:
        with socket.create_connection(where) as stalled:
            stalled.sendall(b"GET /endless HTTP/1.1\r\nhost: x\r\n\r\n")
            async with asyncio.timeout(SECONDS):
                await app.left.wait()
        await _is_answered(where)


async def test_who_takes_as_much_as_is_written_anew_is_not_taken_for_stalled() -> None:
    class Bare(asyncio.Protocol):
        cycle = None
        connections: ClassVar[set[object]] = set()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

    unsent, aborted, transport = [0], [], Mock(asyncio.Transport)
    transport.get_write_buffer_size.side_effect = lambda: unsent[-1]
    transport.is_closing.return_value = False
    transport.abort.side_effect = lambda: aborted.append(1)
    connection = with_limits(Bare, ConnectionLimits(head_seconds=60, stall_seconds=60))()
    assert isinstance(connection, TimedConnection)
    connection.connection_made(transport)
    for size in (70_000, 60_000, 50_000):  # less and less of a long answer
        unsent.append(size)
        connection._check_stall()
    connection.resume_writing()
    unsent.append(80_000)
    connection._check_stall()
    assert not aborted
    connection._check_stall()
    assert aborted
    connection.connection_lost(None)


@both
async def test_of_too_many_the_oldest_silent_ones_go(strict: bool, caplog: pytest.LogCaptureFixture) -> None:
    most = 8
    async with answering(App(), _limits(600, 600, 600, connections=most), strict, caplog) as where:
        silent = [await asyncio.open_connection(*where) for _ in range(3 * most)]
        for reader, _ in silent[: 2 * most]:
            assert await _to_the_end(reader) == b""
        await _is_answered(where, times=3)
        assert not silent[-1][0].at_eof()
        for _, writer in silent:
            writer.close()


def test_half_of_the_file_descriptors_are_left_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 4096))
    assert ConnectionLimits().connections == 128
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert ConnectionLimits().connections == 1024

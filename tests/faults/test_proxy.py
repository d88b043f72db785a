"""The network that the harness cuts is cut, and whole again afterwards."""

import asyncio
import contextlib

import pytest

from tests.faults.proxy import Proxy


async def _echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(100):
            writer.write(data)
    await _closed(writer)


async def test_it_passes_breaks_off_and_is_restored() -> None:
    async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server, Proxy(_port(server)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"one")
        assert await reader.readexactly(3) == b"one"
        proxy.break_off()
        with pytest.raises(OSError, match="reset"):
            await reader.readexactly(1)
        await _closed(writer)
        proxy.restore()
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        writer.write(b"two")
        assert await reader.readexactly(3) == b"two"
        await _closed(writer)


async def test_what_is_held_up_comes_later() -> None:
    async with await asyncio.start_server(_echo, "127.0.0.1", 0) as server, Proxy(_port(server)) as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        proxy.hold_up()
        writer.write(b"one")
        answer = asyncio.ensure_future(reader.readexactly(3))
        done, _ = await asyncio.wait([answer], timeout=0.1)
        assert not done
        proxy.restore()
        assert await answer == b"one"
        await _closed(writer)


async def _closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _port(server: asyncio.Server) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port

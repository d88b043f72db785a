"""Pages are kept up to date over a real port: a snapshot, then changes; slow ones are let go, and all at the end."""

import asyncio
import contextlib
import socket
from itertools import count
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.types import Message

from llmos_stream.dashboard import state_stream as stream_module
from llmos_stream.dashboard.sse import _STALL_SECONDS, EventResponse
from llmos_stream.dashboard.state_stream import StateStream
from llmos_stream.runtime import Shutdown
from llmos_stream.testing import until
from llmos_stream.types import EventKind
from llmos_stream.web.timeouts import ConnectionLimits
from tests.dashboard.aids import SECONDS, Stream, event, on_a_port, shown
from tests.dashboard.patch import apply


async def test_a_snapshot_and_then_what_changed() -> None:
    async with shown() as here, on_a_port(here, Shutdown()) as where, httpx.AsyncClient(timeout=SECONDS) as http:
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=0))
        async with http.stream("GET", f"{where}/api/events") as one, http.stream("GET", f"{where}/api/events") as two:
            assert one.headers["content-type"] == "text/event-stream"
            assert "default-src 'none'" in one.headers["content-security-policy"]
            streams = (Stream(one), Stream(two))
            states = []
            for stream in streams:
                name, state = await stream.next()
                assert name == "snapshot"
                assert state["headline"]["version"] == 0
                states.append(state)
            for version in (1, 2, 3):
                here.view.add_event(event(EventKind.VERSION_PUBLISHED, version, version=version))
                for index, stream in enumerate(streams):
                    while states[index]["headline"]["version"] < version:
                        name, changes = await stream.next()
                        assert name == "changes"
                        for change in changes:
                            states[index] = apply(states[index], change)
            assert states[0] == states[1] == (await http.get(f"{where}/api/state")).json()
            assert len(here.states.viewers) == 2
        await until(lambda: len(here.states.viewers) == 0)


async def test_many_events_are_few_messages() -> None:
    async with (
        shown() as here,
        on_a_port(here, Shutdown()) as where,
        httpx.AsyncClient(timeout=SECONDS) as http,
        http.stream("GET", f"{where}/api/events") as response,
    ):
        stream = Stream(response)
        _, state = await stream.next()
        begun = asyncio.get_running_loop().time()
        messages = 0
        for version in range(2000):
            here.view.add_event(event(EventKind.VERSION_PUBLISHED, version, version=version))
            if version % 50 == 0:
                await asyncio.sleep(0)
        while state["headline"]["version"] != 1999:
            _, changes = await stream.next()
            messages += 1
            for change in changes:
                state = apply(state, change)
        assert messages <= 2 + (asyncio.get_running_loop().time() - begun) / 0.2


async def test_a_slow_viewer_is_let_go_and_others_are_not_held_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_SECONDS", 0.0)
    numbers = [0]
    states = StateStream(lambda: {"number": numbers[0]}, lambda: numbers[0], lambda: 5)
    taken: list[bytes] = []

    async def slow(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()  # its buffers are full for good

    async def quick(message: Message) -> None:
        taken.append(message.get("body", b""))

    async def stays() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    first = asyncio.create_task(EventResponse(states, stall_seconds=0.1)({}, stays, slow))
    second = asyncio.create_task(EventResponse(states)({}, stays, quick))
    await until(lambda: len(states.viewers) == 2)
    while not first.done():
        numbers[0] += 1
        states.refresh()
        await asyncio.sleep(0.001)
    await first
    assert len(states.viewers) == 1
    await until(lambda: str(numbers[0]).encode() in taken[-1])
    states.close()
    await second
    assert len(states.viewers) == 0
    assert len(states._kept) <= 16


async def test_a_viewer_who_leaves_is_not_counted() -> None:
    states = StateStream(lambda: {}, lambda: 0, lambda: 5)
    left = asyncio.Event()

    async def leaves() -> Message:
        await left.wait()
        return {"type": "http.disconnect"}

    async def take(message: Message) -> None:
        if message["type"] == "http.response.body":
            left.set()

    async with asyncio.timeout(SECONDS):
        await EventResponse(states)({}, leaves, take)
    assert len(states.viewers) == 0


async def test_a_viewer_far_behind_gets_the_whole_and_nothing_is_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_SECONDS", 0.0)
    numbers = [0]
    states = StateStream(lambda: {"number": numbers[0]}, lambda: numbers[0], lambda: 5)
    messages = states.messages()
    assert await anext(messages) == b'event: snapshot\ndata: {"now_ms":5,"data":{"number":0}}\n\n'

    def change(times: int) -> None:
        for _ in range(times):
            numbers[0] += 1
            states.refresh()

    change(2)
    both = b'event: changes\ndata: {"now_ms":5,"data":[["d",[["number",["v",1]]]],["d",[["number",["v",2]]]]]}\n\n'
    assert await anext(messages) == both
    change(1000)
    assert await anext(messages) == b'event: snapshot\ndata: {"now_ms":5,"data":{"number":1002}}\n\n'
    assert len(states._kept) == 16
    states.close()
    assert [message async for message in messages] == []


async def test_a_quiet_feed_says_that_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "_BEAT_SECONDS", 0.01)
    messages = StateStream(lambda: {}, lambda: 0, lambda: 5).messages()
    await anext(messages)
    assert await anext(messages) == b'event: beat\ndata: {"now_ms":5,"data":null}\n\n'


async def test_at_the_end_pages_are_let_go() -> None:
    shutdown = Shutdown()
    async with shown() as here, on_a_port(here, shutdown) as where, httpx.AsyncClient(timeout=SECONDS) as http:
        async with http.stream("GET", f"{where}/api/events") as response:
            lines = response.aiter_lines()
            await anext(lines)
            shutdown.request()
            async with asyncio.timeout(SECONDS):
                assert [line async for line in lines][-1] == ""
        await until(lambda: len(here.states.viewers) == 0)


async def test_a_request_with_endless_headers_is_refused() -> None:
    async with shown() as here, on_a_port(here, Shutdown()) as where, httpx.AsyncClient(timeout=SECONDS) as http:
        answer = await http.get(f"{where}/", headers={"x-much": "x" * (64 << 10)})
        assert answer.status_code == 431
        assert (await http.get(f"{where}/")).status_code == 200


async def test_half_a_head_is_not_waited_for_while_pages_stay_open() -> None:
    limits = ConnectionLimits(head_seconds=0.3, body_seconds=0.3)
    async with (
        shown() as here,
        on_a_port(here, Shutdown(), limits=limits) as where,
        httpx.AsyncClient(timeout=SECONDS) as http,
        http.stream("GET", f"{where}/api/events") as response,
    ):
        stream = Stream(response)
        await stream.next()
        for half in (b"GET / HT", b"POST /api/pause HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", urlsplit(where).port)
            writer.write(half)
            async with asyncio.timeout(SECONDS):
                assert await reader.read() == b""
            writer.close()
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=5))
        assert (await stream.next())[0] == "changes"


async def test_a_viewer_who_reads_nothing_is_released(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its system goes on acknowledging, with no room: TCP alone may wait as long as it does."""
    monkeypatch.setattr(stream_module, "_SECONDS", 0.01)
    limits = ConnectionLimits(stall_seconds=0.1)
    async with shown() as here, on_a_port(here, Shutdown(), limits=limits) as where, httpx.AsyncClient() as http:
        at = urlsplit(where)
        with socket.create_connection((at.hostname or "", at.port or 0)) as stalled:
            stalled.sendall(b"GET /api/events HTTP/1.1\r\nhost: x\r\n\r\n")
            await until(lambda: len(here.states.viewers) == 1)
            numbers = count()
            monkeypatch.setattr(here.states, "_make", lambda: str(next(numbers)) * (1 << 20))
            async with asyncio.timeout(0.5 * _STALL_SECONDS):  # sooner than its stream alone would be ended
                while len(here.states.viewers):
                    here.view.changes += 1
                    await asyncio.sleep(0.001)
        assert (await http.get(f"{where}/api/state")).status_code == 200


async def test_the_next_viewer_is_let_in_however_many_streams_one_holds() -> None:
    async with (
        shown(viewers=5) as here,
        on_a_port(here, Shutdown()) as where,
        contextlib.AsyncExitStack() as stack,
    ):
        begun = []
        for address in ["127.0.0.2", *["127.0.0.1"] * 12, "127.0.0.3"]:
            transport = httpx.AsyncHTTPTransport(local_address=address)
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, timeout=SECONDS))
            response = await stack.enter_async_context(http.stream("GET", f"{where}/api/events"))
            assert response.status_code == 200
            begun.append(Stream(response))
            assert (await begun[-1].next())[0] == "snapshot"
        await until(lambda: len(here.states.viewers) == 5)
        here.view.add_event(event(EventKind.VERSION_PUBLISHED, version=1))
        for stream in (begun[0], begun[-1], begun[-2]):  # another one's, the newest, and the newest of the many
            name, _ = await stream.next()
            assert name in ("changes", "snapshot")
        async with asyncio.timeout(SECONDS):
            assert not [line async for line in begun[1].lines if line.startswith("event: snapshot")]

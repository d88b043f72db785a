"""Offloading: the loop goes on answering, and no more runs at once than there are threads."""

import asyncio
import threading

import pytest

from llmos_stream.runtime import Offload


async def _turn() -> None:
    """One turn of the event loop."""
    loop = asyncio.get_running_loop()
    turned = loop.create_future()
    loop.call_soon(turned.set_result, None)
    await turned


async def test_the_loop_answers_while_work_runs() -> None:
    release = threading.Event()
    async with Offload(1) as offload:
        work = asyncio.ensure_future(offload.run(release.wait))
        turns = 0
        while turns < 100:  # each turn is an answer of the loop
            await _turn()
            turns += 1
        assert not work.done()
        release.set()
        assert await work is True


async def test_at_most_as_many_at_once_as_workers() -> None:
    inside, most, lock = 0, 0, threading.Lock()
    both = threading.Barrier(2)

    def work() -> None:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        both.wait(timeout=60)  # passes only when two are inside together
        with lock:
            inside -= 1

    async with Offload(2) as offload:
        await asyncio.gather(*(offload.run(work) for _ in range(6)))
    assert most == 2


async def test_a_cancelled_caller_leaves_its_turn_to_the_thread() -> None:
    release, entered = threading.Event(), threading.Event()

    def work() -> None:
        entered.set()
        release.wait()

    async with Offload(1) as offload:
        first = asyncio.ensure_future(offload.run(work))
        while not entered.is_set():
            await _turn()
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        second = asyncio.ensure_future(offload.run(lambda: "second"))
        for _ in range(20):
            await _turn()
        assert not second.done()  # the thread is still busy with the cancelled caller's work
        release.set()
        assert await second == "second"


async def test_errors_come_back() -> None:
    def fails() -> None:
        raise ValueError("no")

    async with Offload(1) as offload:
        with pytest.raises(ValueError, match="no"):
            await offload.run(fails)
        assert await offload.run(lambda: 1) == 1


def test_no_workers_is_refused() -> None:
    with pytest.raises(ValueError, match="workers"):
        Offload(0)

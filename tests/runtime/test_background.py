"""A loop in a thread: results and errors cross over, closing twice is fine, nothing is left."""

import asyncio
import threading

import pytest

from llmos_stream.runtime import Background


async def _answer() -> int:
    return 42


async def _fail() -> None:
    raise ValueError("inside")


def test_results_and_errors_cross_over() -> None:
    background = Background("test")
    try:
        assert background.run(_answer()) == 42
        with pytest.raises(ValueError, match="inside"):
            background.run(_fail())
    finally:
        background.close()


def test_started_work_goes_on_beside() -> None:
    background = Background("test")
    gate = asyncio.Event()

    async def open_gate() -> None:
        gate.set()

    future = background.start(gate.wait())
    background.run(open_gate())
    assert future.result(timeout=60) is True
    background.close()


def test_closing_twice_leaves_no_thread() -> None:
    before = threading.active_count()
    background = Background("test")
    background.close()
    background.close()
    assert background.closed
    assert threading.active_count() == before


def test_a_time_out_waits_for_the_clean_up() -> None:
    background = Background("test")
    cleaned = []

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    with pytest.raises(TimeoutError):
        background.run(slow(), 0.01)
    assert cleaned == [True]
    background.close()


def test_what_still_runs_at_the_end_is_cancelled_and_awaited() -> None:
    background = Background("test")
    begun, cleaned = threading.Event(), []

    async def forever() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(True)

    background.start(forever())
    assert begun.wait(60)
    background.close(_answer())
    assert cleaned == [True]
    with pytest.raises(RuntimeError, match="closed"):
        background.run(_answer())


def test_its_own_thread_may_close_it() -> None:
    background = Background("test")
    last: list[int] = []

    async def finish() -> None:
        last.append(1)

    async def close_from_inside() -> None:
        background.close(finish())

    background.run(close_from_inside())
    background._thread.join(60)
    assert background.closed
    assert last == [1]

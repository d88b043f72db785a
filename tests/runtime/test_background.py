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
    assert future.result(timeout=10) is True
    background.close()


def test_closing_twice_leaves_no_thread() -> None:
    before = threading.active_count()
    background = Background("test")
    background.close()
    background.close()
    assert background.closed
    assert threading.active_count() == before

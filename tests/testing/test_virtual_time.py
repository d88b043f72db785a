"""Time that jumps to what is due, and time that stands until it is told."""

import asyncio

import pytest

from llmos_stream.testing import LoopClock, ManualClock, run_in_virtual_time


def test_hours_pass_in_no_time_and_in_order() -> None:
    async def main(clock: LoopClock) -> list[tuple[str, float]]:
        seen: list[tuple[str, float]] = []

        async def wait(name: str, seconds: float) -> None:
            await clock.sleep(seconds)
            seen.append((name, clock.monotonic()))

        begun = clock.time_ms()
        await asyncio.gather(wait("slow", 7200.0), wait("quick", 60.0))
        assert clock.time_ms() - begun == 7_200_000
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.Event().wait(), 3600.0)
        seen.append(("late", clock.monotonic()))
        return seen

    assert run_in_virtual_time(main) == [("quick", 60.0), ("slow", 7200.0), ("late", 10_800.0)]


def test_work_in_a_thread_is_done_at_once_and_its_error_kept() -> None:
    async def main(clock: LoopClock) -> int:
        with pytest.raises(ZeroDivisionError):
            await asyncio.to_thread(lambda: 1 // 0)
        return await asyncio.to_thread(lambda: 7)

    assert run_in_virtual_time(main) == 7


def test_who_waits_for_ever_is_told() -> None:
    async def main(_: LoopClock) -> None:
        await asyncio.Event().wait()

    with pytest.raises(RuntimeError, match="everybody waits for ever"):
        run_in_virtual_time(main)


async def test_a_manual_clock_wakes_in_order_and_no_sooner() -> None:
    clock, woken = ManualClock(), []

    async def wait(seconds: float) -> None:
        await clock.sleep(seconds)
        woken.append(seconds)

    async with asyncio.TaskGroup() as group:
        for seconds in (3.0, 1.0, 2.0):
            group.create_task(wait(seconds))
        await asyncio.sleep(0)
        assert clock.next_wake == 1.0
        clock.advance(0.5)
        await asyncio.sleep(0)
        assert woken == []
        clock.advance(1.5)
        await asyncio.sleep(0)
        assert woken == [1.0, 2.0]
        clock.advance(1.0)
    assert woken == [1.0, 2.0, 3.0]
    assert clock.monotonic() == 3.0

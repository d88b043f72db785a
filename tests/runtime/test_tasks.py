"""Tasks: the first error travels on bare, nothing is left running."""

import asyncio
import traceback
from collections.abc import Awaitable, Callable

import pytest

from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.runtime import run_all, run_while
from llmos_stream.runtime.tasks import in_background


async def test_results_come_in_order_and_together() -> None:
    gate = asyncio.Event()

    async def first() -> str:
        await gate.wait()
        return "first"

    async def second() -> str:
        gate.set()
        return "second"

    assert await run_all(first(), second()) == ["first", "second"]


async def test_an_error_cancels_the_others_and_travels_bare() -> None:
    cancelled = asyncio.Event()

    async def waits() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async def fails() -> None:
        raise ConfigError("codec.block: 3 is not a power of two")

    with pytest.raises(ConfigError, match="power of two"):
        await run_all(waits(), fails())
    assert cancelled.is_set()


@pytest.mark.parametrize("together", [run_all, run_while])
async def test_an_error_is_told_as_it_was_raised(together: Callable[..., Awaitable[object]]) -> None:
    """However deep in groups: with its own cause, and without a word about the groups."""

    async def fails() -> None:
        raise ConfigError("codec.block: 3 is not a power of two") from ValueError("3")

    async def fails_inside() -> None:
        await together(fails(), asyncio.sleep(0))

    with pytest.raises(ConfigError) as raised:
        await together(fails_inside(), asyncio.sleep(0))
    told = "".join(traceback.format_exception(raised.value))
    assert "ExceptionGroup" not in told
    assert told.count("Traceback") == 1
    assert told.count("in fails\n") == 1
    assert str(raised.value.__cause__) == "3"


async def test_helpers_end_with_the_main_work() -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def helper() -> None:
        began.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def main() -> int:
        await began.wait()
        return 7

    assert await run_while(main(), helper()) == 7
    assert ended.is_set()


async def test_a_failing_helper_ends_the_main_work() -> None:
    async def helper() -> None:
        raise LlmosError("lost")

    with pytest.raises(LlmosError, match="lost"):
        await run_while(asyncio.Event().wait(), helper())


async def test_cancellation_travels_on() -> None:
    started = asyncio.Event()

    async def main() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(run_all(main()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_runs_in_the_background_ends_with_the_block_and_keeps_its_error() -> None:
    async def fails() -> None:
        raise LlmosError("lost")

    async with in_background(asyncio.Event().wait()) as endless, in_background(fails()) as failed:
        await asyncio.wait([failed])
        assert not endless.done()
    assert endless.cancelled()
    assert isinstance(failed.exception(), LlmosError)

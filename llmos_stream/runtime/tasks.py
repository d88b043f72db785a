"""Structured concurrency. No other module makes tasks."""

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run the coroutines together and return their results in order.

    When one raises, the others are cancelled and awaited, and its error is raised without a group around it: callers
    catch `LlmosError`. Of several errors the first that is no cancellation is raised.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as error:
        failure = _first(error)
    else:
        return [task.result() for task in tasks]
    try:
        raise failure  # here, where the group is no longer handled, so that nothing of it is told with the error
    finally:
        del failure  # its traceback leads here: no circle for the garbage collector


async def run_while(main: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, Any]) -> T:
    """Run `main` with `helpers` beside it; when it ends, cancel and await them."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(helper) for helper in helpers]
            result = await main
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as error:
        failure = _first(error)
    else:
        return result
    try:
        raise failure  # as above
    finally:
        del failure


@asynccontextmanager
async def in_background(work: Coroutine[Any, Any, T]) -> AsyncIterator["asyncio.Task[T]"]:
    """Run `work` beside the block, and cancel and await it then. Its error is for whoever asks the task."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

"""Structured concurrency: the only place where tasks are made."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


async def run_all(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """Run together and return the results in order.

    When one raises, the others are cancelled and awaited, and its error is raised bare: callers
    catch `LlmosError`, not groups. Of several errors the first that is no cancellation travels on.
    """
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as group_error:
        raise _first(group_error) from group_error
    return [task.result() for task in tasks]


async def run_while(main: Coroutine[Any, Any, T], *helpers: Coroutine[Any, Any, Any]) -> T:
    """Run `main` with `helpers` beside it, which are cancelled and awaited when it ends."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(helper) for helper in helpers]
            result = await main
            for task in tasks:
                task.cancel()
    except BaseExceptionGroup as group_error:
        raise _first(group_error) from group_error
    return result


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error

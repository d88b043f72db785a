"""Requests one after another over connections that stay open, while something changes as they go on."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Generic, NamedTuple, TypeVar

from llmos_stream.runtime import run_all

A = TypeVar("A")
Ask = Callable[[int], Awaitable[A]]
"""Sends the request of a turn, counted from 0, and returns its answer."""


class Measured(NamedTuple, Generic[A]):
    seconds: float
    answers: list[A]


class Load(Generic[A]):
    """`connect` opens one of the connections."""

    def __init__(self, connect: Callable[[], AbstractAsyncContextManager[Ask[A]]], connections: int) -> None:
        self._connect = connect
        self._connections = connections

    async def run(
        self, requests: int, swaps: int = 0, swap: Callable[[int], Awaitable[object]] | None = None
    ) -> Measured[A]:
        """Ask so often; `swap` is called with 1, 2, ... `swaps` as the requests go on, spread evenly."""
        answers: list[A] = []
        turns, begun = itertools.count(), time.perf_counter()
        marks = {requests * number // (swaps + 1): asyncio.Event() for number in range(1, swaps + 1)}

        async def ask() -> None:
            async with self._connect() as send:
                while (turn := next(turns)) < requests:
                    answers.append(await send(turn))
                    if (mark := marks.get(len(answers))) is not None:
                        mark.set()

        async def change() -> None:
            for number, mark in enumerate(marks.values(), 1):
                await mark.wait()
                if swap is not None:
                    await swap(number)

        await run_all(change(), *(ask() for _ in range(self._connections)))
        return Measured(time.perf_counter() - begun, answers)

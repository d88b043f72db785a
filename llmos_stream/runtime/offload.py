"""Tensor work, compression and hashing off the event loop, in a bounded executor."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """A thread pool with as many callers inside as it has threads; the others wait their turn.

    The work given to it must release the GIL for most of its time (torch, zstd, hashlib do).
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="offload")
        self._turns = asyncio.Semaphore(workers)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread. A cancelled caller still holds its turn until the thread is free."""
        await self._turns.acquire()
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, partial(function, *args, **kwargs))
        except BaseException:
            self._turns.release()
            raise
        future.add_done_callback(lambda _: self._turns.release())
        return await asyncio.shield(future)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Refuse new work and wait for what runs."""
        await asyncio.get_running_loop().run_in_executor(None, partial(self._pool.shutdown, cancel_futures=True))

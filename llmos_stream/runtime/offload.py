"""Tensor work, compression and hashing off the event loop, in a bounded executor."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import ParamSpec, Self, TypeVar

from llmos_stream.telemetry.process_metrics import BUSY_THREADS

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
        self._closed = False

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread. A cancelled caller still holds its turn until the thread is free."""
        if self._closed:
            raise RuntimeError("this Offload has been closed")
        await self._turns.acquire()
        work = partial(function, *args, **kwargs)
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError:
            # The interpreter is ending and its pools take nothing more: drain here, where nobody waits for the loop.
            self._turns.release()
            return work()
        BUSY_THREADS.inc()
        future.add_done_callback(self._give_back)
        return await asyncio.shield(future)

    def _give_back(self, _: object) -> None:
        BUSY_THREADS.dec()
        self._turns.release()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Refuse new work and wait for what runs."""
        self._closed = True
        # Every turn is back once every thread is idle; so the shutdown does not block the loop, and needs no
        # executor, which the interpreter no longer gives out at exit.
        for _ in range(self.workers):
            await self._turns.acquire()
        self._pool.shutdown()

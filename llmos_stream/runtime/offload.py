"""Tensor work, compression and hashing off the event loop, in a bounded executor."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import ParamSpec, Self, TypeVar

from llmos_stream.telemetry.process_metrics import BUSY_THREADS

P = ParamSpec("P")
T = TypeVar("T")


class Offload:
    """A thread pool that admits as many callers as it has threads; others wait for a turn.

    Its work must release the GIL for most of the time, as torch, zstd and hashlib do.
    """

    def __init__(self, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self.workers = workers
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="offload")
        self._turns = asyncio.Semaphore(workers)
        self._closed = False

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` in a thread. The turn of a cancelled caller ends when the thread is free."""
        if self._closed:
            raise RuntimeError("this Offload has been closed")
        await self._turns.acquire()
        work = partial(function, *args, **kwargs)
        try:
            future = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError:
            # The interpreter is ending and its pools take no more work: run it here, where nobody waits for the loop.
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

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Refuse new work and wait for what runs."""
        self._closed = True
        # With every turn taken every thread is idle, so that `shutdown` blocks the loop for no time. Another executor
        # could not wait for it: the interpreter starts none at exit.
        for _ in range(self.workers):
            await self._turns.acquire()
        self._pool.shutdown()

"""An event loop whose time is virtual: while everybody waits, it jumps to what is due next.

What runs under it sees hours pass in milliseconds, and every run is alike: work in an executor is done at once, in the
loop's own thread. Real clocks stand still beside it, as good as; hand in a `LoopClock`.
"""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from time import time_ns
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
A = TypeVarTuple("A")


class _Jumping(selectors.DefaultSelector):
    """Never waits: what the loop would have waited is added to its time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("everybody waits for ever")
            self.now += max(timeout, 0.0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Executor | None, func: Callable[[*A], T], *args: *A) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001  for whoever awaits it
            future.set_exception(error)
        return future


class LoopClock:
    """The time of a loop, as a `runtime.Clock`."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._started_ms = time_ns() // 1_000_000

    def monotonic(self) -> float:
        return self._loop.time()

    def time_ms(self) -> int:
        return self._started_ms + round(1000 * self._loop.time())

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


def run_in_virtual_time(main: Callable[[LoopClock], Coroutine[Any, Any, T]]) -> T:
    """Run `main` to its end under a loop of its own."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main(LoopClock(runner.get_loop())))

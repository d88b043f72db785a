"""An event loop in a thread of its own, for synchronous callers."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_CLEAN_UP_SECONDS = 10.0


class Background:
    """Runs coroutines for a synchronous caller. Any thread may call `close`, more than once."""

    def __init__(self, name: str) -> None:
        self._stop = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        ready = threading.Event()
        # A daemon thread, so that a script which ends without `close` does not hang: its clean-up runs at exit.
        self._thread = threading.Thread(target=self._serve, args=(ready,), name=name, daemon=True)
        self._closing = threading.Lock()
        self._thread.start()
        ready.wait()

    def _serve(self, ready: threading.Event) -> None:
        # At the end the runner cancels and awaits the tasks that are left.
        with asyncio.Runner() as runner:
            self._loop = runner.get_loop()
            ready.set()
            runner.run(self._stop.wait())

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine beside others.

        Raises:
            RuntimeError: The loop was closed.
        """
        if self.closed:
            coroutine.close()
            raise RuntimeError("this Background has been closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run a coroutine to its end and return the result.

        A time-out or an interrupt of the caller (Ctrl-C) cancels the coroutine and waits for its clean-up.
        """
        started: list[asyncio.Task[T]] = []

        async def recorded() -> T:
            started.append(asyncio.create_task(coroutine))
            return await started[0]

        try:
            future = self.start(recorded())
        except RuntimeError:
            coroutine.close()
            raise
        try:
            return future.result(timeout)
        except BaseException:
            if future.cancel():
                self.start(_ended(started)).result(_CLEAN_UP_SECONDS)
            raise

    def close(self, last: Coroutine[Any, Any, object] | None = None, timeout: float | None = None) -> None:
        """Run `last` to its end, then stop the loop and cancel what still runs.

        In the loop's own thread, where the garbage collector may call it, it only starts this.
        """
        if threading.current_thread() is self._thread:
            self.start(self._finish(last))
            return
        with self._closing:
            if self.closed:
                if last is not None:
                    last.close()
                return
            try:
                if last is not None:
                    self.run(last, timeout)
            finally:
                self._loop.call_soon_threadsafe(self._stop.set)
                self._thread.join()

    async def _finish(self, last: Coroutine[Any, Any, object] | None) -> None:
        try:
            if last is not None:
                await last
        finally:
            self._stop.set()


async def _ended(tasks: list[asyncio.Task[T]]) -> None:
    if tasks:
        await asyncio.wait(tasks)

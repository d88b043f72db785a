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
        future, started = self._recorded(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            if future.cancel():
                self.start(_ended(started, coroutine)).result(_CLEAN_UP_SECONDS)
            raise

    def awaited(self, coroutine: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
        """Start a coroutine, and return what another event loop can await: its result, or its cancellation as in `run`.

        It is started in the context of the caller of this function.
        """
        future, started = self._recorded(coroutine)

        async def result() -> T:
            try:
                return await asyncio.wrap_future(future)
            except asyncio.CancelledError:
                if not self.closed:
                    ended = asyncio.wrap_future(self.start(_ended(started, coroutine)))
                    await asyncio.wait_for(ended, _CLEAN_UP_SECONDS)
                raise

        return result()

    def _recorded(self, coroutine: Coroutine[Any, Any, T]) -> "tuple[Future[T], list[asyncio.Task[T]]]":
        """Start a coroutine; its task is in the list as soon as there is one."""
        started: list[asyncio.Task[T]] = []

        async def recorded() -> T:
            started.append(asyncio.create_task(coroutine))
            return await started[0]

        try:
            return self.start(recorded()), started
        except RuntimeError:
            coroutine.close()
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


async def _ended(tasks: list[asyncio.Task[T]], coroutine: Coroutine[Any, Any, T]) -> None:
    if tasks:
        await asyncio.wait(tasks)
    else:
        coroutine.close()  # it was cancelled before it began

"""An event loop in a thread of its own, for callers that are not asynchronous."""

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")


class Background:
    """Runs coroutines for a synchronous caller. `close` may be called from any thread, more than once."""

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        # A daemon, so that a script that ends without `close` is not held up: its clean-up runs at exit.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)
        self._closing = threading.Lock()
        self._thread.start()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()

    @property
    def closed(self) -> bool:
        return not self._thread.is_alive()

    def start(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run beside others; the future tells how it ends. Raises RuntimeError after `close`."""
        if self.closed:
            coroutine.close()
            raise RuntimeError("this Background has been closed")
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, T], timeout: float | None = None) -> T:
        """Run to the end and return the result.

        An interrupt of the caller (Ctrl-C) cancels the coroutine and waits for its clean-up.
        """
        future = self.start(coroutine)
        try:
            return future.result(timeout)
        except BaseException:
            future.cancel()
            raise

    def call(self, function: Callable[[], object]) -> None:
        """Call `function` in the loop's thread, without waiting for it."""
        self._loop.call_soon_threadsafe(function)

    def close(self) -> None:
        with self._closing:
            if not self._thread.is_alive():
                return
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

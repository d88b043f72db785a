"""Polls that sleep until something arrives, whichever thread or event loop writes it."""

import asyncio
from collections.abc import Iterable
from contextlib import suppress


class Waiter:
    """One sleeping poll. It belongs to the event loop that made it; `wake` may come from any thread."""

    def __init__(self, topics: Iterable[str]) -> None:
        self.topics = frozenset(topics)
        self._loop = asyncio.get_running_loop()
        self._woken = self._loop.create_future()

    def wake(self) -> None:
        with suppress(RuntimeError):  # its loop is closed: nobody sleeps there any more
            self._loop.call_soon_threadsafe(self._set)

    async def sleep(self, seconds: float) -> None:
        """Sleep until woken, at most this long."""
        await asyncio.wait([self._woken], timeout=seconds)

    def _set(self) -> None:
        if not self._woken.done():
            self._woken.set_result(None)

"""One request to stop, seen by every loop of a process."""

import asyncio
import contextlib


class Shutdown:
    """Set once, from the event loop's own thread; waited for by anyone.

    A role ends its intake when `requested` is true, drains, and returns.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the request, at most `seconds`. Returns whether it has come."""
        if seconds is None:
            await self._event.wait()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._event.wait()
        return self._event.is_set()

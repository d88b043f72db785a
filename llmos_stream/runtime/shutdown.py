"""A request to stop, which every loop of a process sees."""

import asyncio
import contextlib


class Shutdown:
    """Set once, from the event loop's own thread.

    A role ends its intake when `requested` is true, drains, and returns.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def request(self) -> None:
        """Ask for a stop."""
        self._event.set()

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the request, at most `seconds`, and return whether it came."""
        if seconds is None:
            await self._event.wait()
        else:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._event.wait()
        return self._event.is_set()

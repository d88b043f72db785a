"""A request to stop, which every loop of a process sees."""

import asyncio
from contextlib import suppress

from llmos_stream.runtime.clock import SYSTEM_CLOCK, Clock
from llmos_stream.runtime.tasks import run_while


class Shutdown:
    """Set once, from the event loop's own thread.

    A role ends its intake when `requested` is true, drains, and returns.
    """

    def __init__(self) -> None:
        self._event = asyncio.Event()
        self.interrupted = False
        """Whether it was Ctrl-C that asked."""

    @property
    def requested(self) -> bool:
        return self._event.is_set()

    def request(self) -> None:
        self._event.set()

    async def wait(self, seconds: float | None = None, clock: Clock = SYSTEM_CLOCK) -> bool:
        """Wait for the request, at most `seconds` of `clock`. Returns whether it has come."""
        if seconds is None:
            await self._event.wait()
        elif not self.requested:
            with suppress(_Requested):
                await run_while(clock.sleep(max(seconds, 0.0)), self._raise())
        return self._event.is_set()

    async def _raise(self) -> None:
        await self._event.wait()
        raise _Requested


class _Requested(Exception):
    """The stop was asked for."""

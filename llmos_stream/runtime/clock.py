"""Time, as something that is handed in: a test or a simulation may hand in another."""

import asyncio
from time import monotonic, time_ns
from typing import Protocol


class Clock(Protocol):
    """What the time is, and how to let it pass."""

    def monotonic(self) -> float:
        """Seconds that never run backwards; only differences mean something."""

    def time_ms(self) -> int:
        """Milliseconds since the epoch."""

    async def sleep(self, seconds: float) -> None:
        """Let this much time pass."""


class SystemClock:
    """The time of this machine."""

    def monotonic(self) -> float:
        return monotonic()

    def time_ms(self) -> int:
        return time_ns() // 1_000_000

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)


SYSTEM_CLOCK = SystemClock()

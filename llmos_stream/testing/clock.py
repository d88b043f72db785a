"""Time that passes when a test says so."""

import asyncio
import heapq
from itertools import count

_EPOCH_MS = 1_700_000_000_000


class ManualClock:
    """A `Clock` that stands still: `advance` lets time pass, and wakes who sleeps until then, in order."""

    def __init__(self, now: float = 0.0) -> None:
        self._now = now
        self._order = count()
        self._sleeping: list[tuple[float, int, asyncio.Event]] = []

    def monotonic(self) -> float:
        """Seconds since the clock began."""
        return self._now

    def time_ms(self) -> int:
        """Milliseconds since an epoch of its own."""
        return _EPOCH_MS + int(self._now * 1000)

    async def sleep(self, seconds: float) -> None:
        """Sleep until `advance` has let this much time pass."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        woken = asyncio.Event()
        heapq.heappush(self._sleeping, (self._now + seconds, next(self._order), woken))
        await woken.wait()

    @property
    def next_wake(self) -> float | None:
        """When the next sleeper wakes; None while nobody sleeps."""
        return self._sleeping[0][0] if self._sleeping else None

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        until = self._now + seconds
        while self._sleeping and self._sleeping[0][0] <= until:
            self._now, _, woken = heapq.heappop(self._sleeping)
            woken.set()
        self._now = until

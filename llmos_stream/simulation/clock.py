"""A virtual clock: what happens next is what is due next."""

import math
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any


class VirtualClock:
    """Calls what is due, one thing after the other; of what is due at one time, what was asked for first."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Callable[[Any], object], Any]] = []
        self._asked = 0

    def at(self, when: float, act: Callable[[Any], object], what: object = None) -> int:
        """Call `act(what)` at this time. Returns how many calls have been asked for."""
        self._asked += 1
        heappush(self._due, (when, self._asked, act, what))
        return self._asked

    @property
    def next_at(self) -> float:
        """When the next call is due; infinity where there is none."""
        return self._due[0][0] if self._due else math.inf

    def step(self) -> None:
        """Go to the next call, and make it."""
        self.now, _, act, what = heappop(self._due)
        act(what)

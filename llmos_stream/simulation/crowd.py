"""Who takes part in a simulated run, and when: all clients, or so many at a time, chosen by chance."""

import math
from collections.abc import Callable

from llmos_stream.errors import ConfigError
from llmos_stream.simulation.scene import Scene
from llmos_stream.simulation.settings import PopulationSettings

_TRIES = 64
_MOST_IDLE = 1000


class Crowd:
    """Lets clients begin. `begin(number)` tells whether the client found something to do."""

    def __init__(self, settings: PopulationSettings, scene: Scene, begin: Callable[[int], bool]) -> None:
        self._count, self._wanted, self._together = settings.clients, settings.concurrency, settings.together
        self._clock, self._chance, self._population = scene.clock, scene.chance, scene.population
        self._begin_client = begin
        self._busy = bytearray(self._count)
        self._working = 0

    def begin(self) -> None:
        """Let the first ones begin."""
        if self._wanted is not None:
            self._recruit(None)
            return
        for number in range(self._count):
            there = self._population.there_from(number, self._clock.now)
            if there <= self._clock.now:
                self._begin(number)
            elif there < math.inf:
                self._clock.at(there, self._begin, number)

    def left(self, number: int) -> None:
        """A client has left: another may take its place."""
        self._busy[number] = 0
        self._working -= 1
        if self._wanted is not None and not (self._together and self._working):
            self._clock.at(self._clock.now, self._recruit)  # once what happens now has happened

    def _begin(self, number: int) -> bool:
        self._busy[number] = 1
        self._working += 1
        return self._begin_client(number)

    def _recruit(self, _: object) -> None:
        """Fill the places of those who have left, with clients chosen by chance."""
        idle = 0
        while self._working < (self._wanted or 0):
            chosen, later = self._choose()
            if chosen is None:
                if later < math.inf:
                    self._clock.at(max(later, self._clock.now), self._recruit)
                return
            idle = 0 if self._begin(chosen) else idle + 1
            if idle > _MOST_IDLE:
                raise ConfigError("participation: no client is wanted that there is")

    def _choose(self) -> tuple[int | None, float]:
        """A client that is there and does not work; or None, and when it is worth to look again."""
        now, later = self._clock.now, math.inf
        for _ in range(_TRIES):
            number = int(self._chance.next() * self._count)
            if not self._busy[number]:
                there = self._population.there_from(number, now)
                if there <= now:
                    return number, now
                later = min(later, there)
        if self._count <= _TRIES**2:
            free = [number for number in range(self._count) if not self._busy[number]]
            times = [self._population.there_from(number, now) for number in free]
            here = [number for number, there in zip(free, times, strict=True) if there <= now]
            if here:
                return here[int(self._chance.next() * len(here))], now
            later = min(times, default=math.inf)
        return None, later

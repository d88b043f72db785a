"""Bounded state of an endless run: thinned points, known identities, means, a recent rate, binned sums, its times."""

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")
CLOCK_SKEW_MS = 3_600_000
"""How much a client's clock may differ from the servers' and still count."""


class Thinned(Generic[T]):
    """At most `limit` of the added items, evenly spread, and always the newest one.

    When it is full it drops every second item, and from then on keeps every second new one, and so on. What it keeps
    depends on the order of arrival only.
    """

    def __init__(self, limit: int = 5000) -> None:
        if limit < 2:
            raise ValueError(f"limit must be at least 2, not {limit}")
        self._limit = limit
        self._kept: list[T] = []
        self._newest: list[T] = []
        self.stride = 1
        """One of this many new items is kept."""
        self.total = 0
        """Number of items that were added."""

    def add(self, item: T) -> None:
        self._newest = [item]
        if self.total % self.stride == 0:
            self._kept.append(item)
            self._newest = []
            if len(self._kept) >= self._limit:
                self._newest = [item] if len(self._kept) % 2 == 0 else []
                del self._kept[1::2]
                self.stride *= 2
        self.total += 1

    def __iter__(self) -> Iterator[T]:
        yield from self._kept
        yield from self._newest

    def __len__(self) -> int:
        return len(self._kept) + len(self._newest)


class Window:
    """The newest `size` numbers that were seen.

    A number below all of them counts as seen, so that a log which is read again from its start adds nothing. Numbers
    may arrive out of order by up to `size` others.
    """

    def __init__(self, size: int = 64) -> None:
        self._size = size
        self._seen: set[int] = set()
        self._lowest: list[int] = []
        self._floor = -1

    def is_new(self, number: int) -> bool:
        """Add `number`, and return whether it was not seen before."""
        if number <= self._floor or number in self._seen:
            return False
        self._seen.add(number)
        heapq.heappush(self._lowest, number)
        if len(self._seen) > self._size:
            self._floor = heapq.heappop(self._lowest)
            self._seen.remove(self._floor)
        return True


class Windows:
    """A `Window` for each of at most `limit` keys; under any further key every number is new."""

    def __init__(self, limit: int = 256, size: int = 1024) -> None:
        self._limit, self._size = limit, size
        self._windows: dict[object, Window] = {}

    def is_new(self, key: object, number: int) -> bool:
        if key not in self._windows:
            if len(self._windows) >= self._limit:
                return True
            self._windows[key] = Window(self._size)
        return self._windows[key].is_new(number)


class Recent:
    """The newest `size` distinct names."""

    def __init__(self, size: int = 4096) -> None:
        self._size = size
        self._names: dict[object, None] = {}

    def is_new(self, name: object) -> bool:
        if name in self._names:
            return False
        self._names[name] = None
        if len(self._names) > self._size:
            del self._names[next(iter(self._names))]
        return True


@dataclass(slots=True)
class Mean:
    """Mean of numbers; None is left out."""

    total: float = 0.0
    count: int = 0

    def add(self, number: float | None) -> None:
        if number is not None:
            self.total += number
            self.count += 1

    @property
    def value(self) -> float | None:
        return self.total / self.count if self.count else None


class Rate:
    """Items per second in the newest `window` seconds, by the items' own times."""

    def __init__(self, window: int = 30) -> None:
        self._window = window
        self._counts: dict[int, int] = {}
        self._first = 0
        self._newest = 0

    def add(self, time_ms: int) -> None:
        second = time_ms // 1000
        self._first = min(self._first, second) if self._counts else second
        self._newest = max(self._newest, second)
        if second > self._newest - self._window:
            self._counts[second] = self._counts.get(second, 0) + 1
        if len(self._counts) > self._window:
            self._counts = {key: n for key, n in self._counts.items() if key > self._newest - self._window}

    def per_second(self, now_ms: int | None = None) -> float:
        """Return the rate over the window that ends at `now_ms`, by default at the newest item."""
        now = self._newest if now_ms is None else max(now_ms // 1000, self._newest)
        count = sum(n for second, n in self._counts.items() if second > now - self._window)
        return count / max(1, min(self._window, now - self._first + 1))


class Bins:
    """Sums of weights by name over ranges of versions, whose width doubles above `limit` ranges."""

    def __init__(self, limit: int = 32) -> None:
        self._limit = limit
        self._sums: dict[int, dict[str | None, float]] = {}
        self.width = 1
        """Versions in a range."""

    def add(self, version: int, name: str | None, weight: float) -> None:
        self._add(version // self.width, name, weight)
        while len(self._sums) > self._limit:
            old, self._sums, self.width = self._sums, {}, self.width * 2
            for index, sums in old.items():
                for key, total in sums.items():
                    self._add(index // 2, key, total)

    def rename(self, name: str, to: str | None) -> None:
        for index, sums in self._sums.items():
            if name in sums:
                self._add(index, to, sums.pop(name))

    def ranges(self) -> list[tuple[int, dict[str | None, float]]]:
        """List (first version, sums by name) of each range with any sum, in order."""
        return [(index * self.width, dict(sums)) for index, sums in sorted(self._sums.items())]

    def _add(self, index: int, name: str | None, weight: float) -> None:
        sums = self._sums.setdefault(index, {})
        sums[name] = sums.get(name, 0.0) + weight


class TimeRange:
    """Start and end of a run by the servers' clocks.

    A client's clock may be wrong: its times extend the range only by up to an hour.
    """

    def __init__(self) -> None:
        self._server: tuple[int, int] | None = None
        self._client: tuple[int, int] | None = None

    def add(self, time_ms: int, by_server: bool) -> None:
        if by_server:
            self._server = _widened(self._server, time_ms)
        else:
            self._client = _widened(self._client, time_ms)

    def plausible(self, time_ms: int) -> int:
        """Return a client's time, or the servers' newest where the two are more than an hour apart."""
        if self._server is None or abs(time_ms - self._server[1]) <= CLOCK_SKEW_MS:
            return time_ms
        return self._server[1]

    @property
    def start_ms(self) -> int | None:
        if self._server is None or self._client is None:
            return self._client[0] if self._client else self._server[0] if self._server else None
        server, client = self._server[0], self._client[0]
        return client if server - CLOCK_SKEW_MS <= client < server else server

    @property
    def end_ms(self) -> int | None:
        if self._server is None or self._client is None:
            return self._client[1] if self._client else self._server[1] if self._server else None
        server, client = self._server[1], self._client[1]
        return client if server < client <= server + CLOCK_SKEW_MS else server


def _widened(span: tuple[int, int] | None, time_ms: int) -> tuple[int, int]:
    return (time_ms, time_ms) if span is None else (min(span[0], time_ms), max(span[1], time_ms))

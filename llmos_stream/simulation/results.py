"""What a simulated run has come to: a curve, totals, and how it treated its clients. Bounded, however long it was."""

import math
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from llmos_stream.simulation.aggregator import Taken
from llmos_stream.simulation.settings import SimulationSettings

_POINTS = 2048
_LAST = 10


@dataclass(frozen=True, slots=True)
class Point:
    """What a version reached, and what had been spent by then."""

    seconds: float
    version: int
    updates: int
    bytes_up: int
    bytes_down: int
    metrics: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Result:
    """One run. Everything but `wall_seconds` follows from the settings and the seed."""

    arm: str
    seed: int
    fingerprint: str
    points: list[Point]
    updates: int
    folded: int
    refused: dict[str, int]
    versions: int
    seconds: float
    bytes_up: int
    bytes_down: int
    clients: int
    clients_seen: int
    clients_never_folded: int
    """Clients that sent updates, every one of which was refused."""
    staleness: dict[str, float]
    final: float | None
    """The metric's mean over the last evaluations."""
    best: float | None
    sites: dict[str, float]
    """The final model at the sites: mean, worst, variance."""
    digest: str
    ended: str
    training: str
    wall_seconds: float = 0.0

    def reached(self, target: float, settings: SimulationSettings) -> Point | None:
        """The first evaluation that came to the target."""
        return next((point for point in self.points if reaches(point.metrics, target, settings)), None)


def reaches(metrics: Mapping[str, float], target: float, settings: SimulationSettings) -> bool:
    """Whether these metrics are as good as the target."""
    value = metrics.get(settings.metric, math.nan)
    return value >= target if settings.mode == "max" else value <= target


def result_of(values: Mapping[str, Any]) -> Result:
    """The result that was written as JSON. Raises TypeError or KeyError for anything else."""
    points = [Point(**point) for point in values["points"]]
    return Result(**{**values, "points": points})


class Tally:
    """Gathers a run's result as it goes."""

    def __init__(self, settings: SimulationSettings, clients: int) -> None:
        self.settings = settings
        self.points: list[Point] = []
        self.received = self.folded = self.bytes_up = self.bytes_down = 0
        self.refused: Counter[str] = Counter()
        self.reached = False
        self.best: float | None = None
        self.sent_by = np.zeros(clients, np.int32)
        self.folded_by = np.zeros(clients, np.int32)
        self._staleness: Counter[int] = Counter()
        self._last: deque[float] = deque(maxlen=_LAST)
        self._keep_every, self._seen_points = 1, 0

    def evaluated(self, point: Point) -> None:
        """Note an evaluation. Of many, each second one is dropped, but never the first that reaches the target."""
        value = point.metrics.get(self.settings.metric)
        if value is not None:
            self._last.append(value)
            better = max if self.settings.mode == "max" else min
            self.best = value if self.best is None or not math.isfinite(self.best) else better(self.best, value)
        target = self.settings.target
        first = target is not None and not self.reached and reaches(point.metrics, target, self.settings)
        self.reached = self.reached or first
        if first or self._seen_points % self._keep_every == 0:
            self.points.append(point)
        self._seen_points += 1
        if len(self.points) > _POINTS:
            self._thin()

    def _thin(self) -> None:
        target = self.settings.target
        met = (
            None
            if target is None
            else next((p for p in self.points if reaches(p.metrics, target, self.settings)), None)
        )
        self.points = [point for at, point in enumerate(self.points) if at % 2 == 0 or point is met]
        self._keep_every *= 2

    def refuse(self, client: int, why: str) -> None:
        """Note an update that a client could not send, or that came to nothing."""
        self.sent_by[client] += 1
        self.refused[why] += 1

    def taken(self, taken: Taken) -> None:
        """Note what became of an update, and of the version that it completed."""
        if taken.refused is not None:
            self.refused[str(taken.refused)] += 1  # a plain one, as JSON wants it
        if (item := taken.folded) is not None:
            self.folded += 1
            self._stale(item.staleness)
            self.folded_by[int(item.client_id[1:])] += 1
        for client_id in taken.lost:
            self.folded -= 1
            self.folded_by[int(client_id[1:])] -= 1
            self.refused["unsafe_version"] += 1

    def _stale(self, tau: int) -> None:
        """Note the staleness of an update that was folded; beyond 4096 roughly."""
        if tau > 4096:
            tau = tau >> (tau.bit_length() - 8) << (tau.bit_length() - 8)
        self._staleness[tau] += 1

    @property
    def final(self) -> float | None:
        return fmean(self._last) if self._last else None

    def staleness(self) -> dict[str, float]:
        """Mean, median, 95th percentile and greatest."""
        total = sum(self._staleness.values())
        if not total:
            return {}
        ordered = sorted(self._staleness.items())
        ends = np.cumsum([count for _, count in ordered])
        middle, high = (float(ordered[int(np.searchsorted(ends, part * total))][0]) for part in (0.5, 0.95))
        mean = sum(tau * count for tau, count in ordered) / total
        return {"mean": mean, "p50": middle, "p95": high, "max": float(ordered[-1][0])}

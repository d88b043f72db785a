"""When a run ends: at a target, when it stops improving, at a version, or after a time.

Evaluations may come late, twice or out of order. Patience counts the versions evaluated that are newer
than the best, each once, so the order of arrival does not matter. It does where two values differ by
`min_delta` or less: then the one that came first is the best.
"""

import math
from bisect import insort
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llmos_stream.config import StopSettings
from llmos_stream.config.plugins import STOP_RULES, find_plugin
from llmos_stream.errors import ConfigError, StateError


@dataclass(frozen=True, slots=True)
class Stop:
    """Why the run ends: `reason` is the setting that says so, `detail` a sentence for people."""

    reason: str
    detail: str


class StopRule:
    """Each method takes in one fact and returns a Stop if the run should end because of it.

    Subclass it for a rule of your own: its constructor takes (options, settings).
    """

    def __init__(self, settings: StopSettings) -> None:
        self._settings = settings
        self.best: tuple[int, float] | None = None
        """Version and value of the best evaluation."""
        self._newest: list[int] = []
        """The newest versions evaluated, as many as patience needs to know, in order."""

    def dump(self) -> dict[str, object]:
        """What was learnt from evaluations, as JSON can say it."""
        return {"best": None if self.best is None else list(self.best), "newest": list(self._newest)}

    def load(self, dumped: Mapping[str, object]) -> None:
        """Take over what `dump` gave. Raises StateError if it is not that."""
        match dumped:
            case {"best": None, "newest": [*newest]}:
                best = None
            case {"best": [int(version), (int() | float()) as value], "newest": [*newest]}:
                best = (version, float(value))
            case _:
                raise StateError("the stop rule's state is damaged")
        known = sorted(version for version in newest if isinstance(version, int))
        if len(known) < len(newest):
            raise StateError("the stop rule's state is damaged")
        self.best, self._newest = best, known

    def observe_evaluation(self, version: int, metrics: Mapping[str, float]) -> Stop | None:
        """Target and patience. A value that is not finite is an evaluation without a new best.

        Raises ConfigError if the metric they look at is not there.
        """
        settings = self._settings
        if settings.target is None and settings.patience is None:
            return None
        if settings.metric not in metrics:
            raise ConfigError(f"stop.metric: no metric {settings.metric!r}, the evaluation has {sorted(metrics)}")
        value = metrics[settings.metric]
        improved = math.isfinite(value) and (self.best is None or self._gain(value, self.best[1]) > settings.min_delta)
        if improved:
            self.best = (version, value)
        if settings.target is not None and math.isfinite(value) and self._gain(value, settings.target) >= 0:
            return Stop(
                "target", f"{settings.metric} {value:.6g} at version {version} reached the target {settings.target:.6g}"
            )
        return None if settings.patience is None else self._count(version, settings.patience)

    def observe_version(self, number: int) -> Stop | None:
        """The limit on versions."""
        limit = self._settings.max_versions
        if limit is None or number < limit:
            return None
        return Stop("max_versions", f"version {number} reached the limit of {limit}")

    def tick(self, elapsed_seconds: float) -> Stop | None:
        """The limit on time, counted from the run's start."""
        limit = self._settings.max_seconds
        if limit is None or elapsed_seconds < limit:
            return None
        return Stop("max_seconds", f"{elapsed_seconds:.1f} s reached the limit of {limit:.1f} s")

    def _gain(self, value: float, over: float) -> float:
        return value - over if self._settings.mode == "max" else over - value

    def _count(self, version: int, patience: int) -> Stop | None:
        """Patience is spent if the newest `patience` versions evaluated are all newer than the best."""
        if version not in self._newest:
            insort(self._newest, version)
            del self._newest[:-patience]
        since = -1 if self.best is None else self.best[0]
        if len(self._newest) < patience or self._newest[0] <= since:
            return None
        best = "none" if self.best is None else f"{self.best[1]:.6g} at version {self.best[0]}"
        return Stop("patience", f"{patience} evaluations without a new best of {self._settings.metric} ({best})")


BUILT_IN: Mapping[str, Callable[..., StopRule]] = {"standard": lambda options, settings: StopRule(settings)}


def make_stop_rule(settings: StopSettings) -> StopRule:
    """The rule that `stop.rule` names. Raises ConfigError where there is none, or for options it does not take."""
    plugin = find_plugin(STOP_RULES, BUILT_IN, settings.rule)
    try:
        rule: StopRule = plugin.target(plugin.options(settings.options), settings)
    except ValueError as error:
        raise ConfigError(f"stop.options: {error}") from error
    return rule

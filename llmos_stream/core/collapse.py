"""Whether a model has collapsed: by its loss, against the best of the last versions evaluated."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llmos_stream.config import GuardSettings


@dataclass(frozen=True, slots=True)
class Collapse:
    """A version whose loss is not finite, or far above the best one. `best` is None where no other was evaluated."""

    version: int
    loss: float
    best: tuple[int, float] | None
    """Version and loss of the best of the last ones."""
    limit: float | None
    """The highest loss that would not have been a collapse."""


class CollapseGuard:
    """Takes evaluations, in any order, and says when the model collapses: once, until a newer version is good again.

    A best loss of zero or less bounds no factor of it, so there only a loss that is not finite counts.
    """

    def __init__(self, settings: GuardSettings) -> None:
        self._factor = settings.loss_factor
        self._window = settings.window
        self._good: dict[int, float] = {}  # loss by version
        self._collapsed: int | None = None
        self._since = 0

    def observe(self, version: int, loss: float) -> Collapse | None:
        """Take in the loss of a version (NaN where it diverged)."""
        if version < self._since or version in self._good:
            return None
        best = min(self._good.items(), key=lambda item: (item[1], item[0]), default=None)
        limit = None if best is None or best[1] <= 0 else self._factor * best[1]
        if math.isfinite(loss) and (limit is None or loss <= limit):
            self._good[version] = loss
            for oldest in sorted(self._good)[: -self._window]:
                del self._good[oldest]
            if self._collapsed is not None and version > self._collapsed:
                self._collapsed = None
            return None
        if self._collapsed is not None:
            return None
        self._collapsed = version
        return Collapse(version, loss, best, limit)

    def forget_before(self, version: int) -> None:
        """Pass over what is heard of older versions: this one is the first after a rollback."""
        self._since, self._collapsed = version, None

    def dump(self) -> dict[str, object]:
        """What was learnt, as JSON can say it."""
        good = [list(item) for item in self._good.items()]
        return {"good": good, "collapsed": self._collapsed, "since": self._since}

    def load(self, dumped: object) -> None:
        """Take over what `dump` gave; anything else is passed over."""
        match dumped:
            case {"good": [*good], "collapsed": None | int() as collapsed, "since": int(since)}:
                self._good = {
                    version: float(loss)
                    for version, loss in (pair for pair in good if isinstance(pair, list) and len(pair) == 2)
                    if isinstance(version, int) and isinstance(loss, int | float)
                }
                self._collapsed, self._since = collapsed, since


def loss_of(metrics: Mapping[str, float | None]) -> float | None:
    """Return the loss in an evaluation: NaN where it is null, as JSON has no NaN; None where there is none."""
    if "loss" not in metrics:
        return None
    loss = metrics["loss"]
    return math.nan if loss is None else loss

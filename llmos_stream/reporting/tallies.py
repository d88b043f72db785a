"""Running sums of one subject each: scores of the versions, bytes on the wire, refusals."""

from collections import Counter, deque
from collections.abc import Mapping

from llmos_stream.reporting.points import BytesPoint, Evaluation, Refusal
from llmos_stream.reporting.series import Thinned, Window

CHARTED = ("accuracy", "loss")
_REASONS = 64
_NEWEST = 200


class Scores:
    """Evaluations, one for each version: the first that came counts."""

    def __init__(self, limit: int) -> None:
        self.points: Thinned[Evaluation] = Thinned(limit)
        self.last: Evaluation | None = None
        """Of the newest version."""
        self.best: Evaluation | None = None
        """The highest accuracy, the earliest such version."""
        self._seen = Window(4096)

    def add(self, version: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        if not self._seen.is_new(version):
            return
        point = Evaluation(version, time_ms, {name: metrics[name] for name in CHARTED if name in metrics})
        self.points.add(point)
        if self.last is None or version > self.last.version:
            self.last = point
        if "accuracy" in point.metrics and (self.best is None or _rank(point) > _rank(self.best)):
            self.best = point

    def in_order(self) -> list[Evaluation]:
        """The points by version."""
        return sorted(self.points, key=lambda point: point.version)


def _rank(point: Evaluation) -> tuple[float, int]:
    return point.metrics["accuracy"], -point.version


class Traffic:
    """Bytes uploaded, what the same updates take as float32, and bytes broadcast."""

    def __init__(self, limit: int) -> None:
        self.points: Thinned[BytesPoint] = Thinned(limit)
        self.sent = 0
        self.raw = 0
        self.broadcast = 0
        self._time_ms = 0

    def add(self, time_ms: int, *, sent: int = 0, raw: int = 0, broadcast: int = 0) -> None:
        self.sent += sent
        self.raw += raw
        self.broadcast += broadcast
        # The sums grow in order of arrival, so time must not run back from one point to the next.
        self._time_ms = max(self._time_ms, time_ms)
        self.points.add(BytesPoint(self._time_ms, self.sent, self.raw, self.broadcast))

    @property
    def saved_percent(self) -> float | None:
        """By how much the uploads are smaller than float32 deltas would be; negative where larger."""
        return 100 * (1 - self.sent / self.raw) if self.raw else None


class Refusals:
    """Updates refused: counts for each of at most 64 reasons, details of the newest 200."""

    def __init__(self) -> None:
        self.newest: deque[Refusal] = deque(maxlen=_NEWEST)
        self.by_reason: Counter[str] = Counter()

    def add(self, refusal: Refusal) -> None:
        known = refusal.reason in self.by_reason or len(self.by_reason) < _REASONS
        self.by_reason[refusal.reason if known else "other reasons"] += 1
        self.newest.append(refusal)

    @property
    def total(self) -> int:
        return self.by_reason.total()

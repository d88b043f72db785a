"""Running totals: scores of the versions, bytes on the wire, rejected updates."""

from collections import Counter, deque
from collections.abc import Mapping

from llmos_stream.reporting.history.clients import NAME_LENGTH
from llmos_stream.reporting.history.records import BytesPoint, EvaluationPoint, RejectedUpdate
from llmos_stream.reporting.history.series import Thinned, Window

CHARTED = ("accuracy", "loss")
_REASONS = 64
_NEWEST = 200
_MOST_OTHERS = 16


class Scores:
    """Evaluations, one for each version: the first counts."""

    def __init__(self, limit: int) -> None:
        self.points: Thinned[EvaluationPoint] = Thinned(limit)
        self.last: EvaluationPoint | None = None
        """The evaluation of the newest version."""
        self.best: EvaluationPoint | None = None
        """The evaluation with the highest accuracy, the earliest of them."""
        self._seen = Window(4096)

    def add(self, version: int, time_ms: int, metrics: Mapping[str, float]) -> None:
        if not self._seen.is_new(version):
            return
        others = sorted(name for name in metrics if name not in CHARTED)[:_MOST_OTHERS]
        point = EvaluationPoint(
            version,
            time_ms,
            {name: metrics[name] for name in CHARTED if name in metrics},
            {name[:NAME_LENGTH]: metrics[name] for name in others},
        )
        self.points.add(point)
        if self.last is None or version > self.last.version:
            self.last = point
        if "accuracy" in point.metrics and (self.best is None or _rank(point) > _rank(self.best)):
            self.best = point

    def in_order(self) -> list[EvaluationPoint]:
        return sorted(self.points, key=lambda point: point.version)


def _rank(point: EvaluationPoint) -> tuple[float, int]:
    return point.metrics["accuracy"], -point.version


class Traffic:
    """Bytes uploaded, the same as float32, and bytes broadcast."""

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
        # The sums grow in order of arrival, so time must not run backwards between points.
        self._time_ms = max(self._time_ms, time_ms)
        self.points.add(BytesPoint(self._time_ms, self.sent, self.raw, self.broadcast))

    @property
    def saved_percent(self) -> float | None:
        """How much smaller the uploads are than float32 deltas; negative where they are larger."""
        return 100 * (1 - self.sent / self.raw) if self.raw else None


class Tokens:
    """Tokens that updates were trained on, of those that say so: how many, in which training time, in which bytes."""

    def __init__(self) -> None:
        self.trained = 0
        self._seconds = 0.0
        self._sent = 0

    def add(self, tokens: int, seconds: float, sent: int) -> None:
        self.trained += tokens
        self._seconds += seconds
        self._sent += sent

    @property
    def per_second(self) -> float | None:
        """Of a client while it trains: the mean over all."""
        return self.trained / self._seconds if self._seconds else None

    @property
    def bytes_each(self) -> float | None:
        """Bytes sent for a token; None where none was trained on."""
        return self._sent / self.trained if self.trained else None


class Rejections:
    """Rejected updates: counts of at most 64 reasons, details of the newest 200."""

    def __init__(self) -> None:
        self.newest: deque[RejectedUpdate] = deque(maxlen=_NEWEST)
        self.by_reason: Counter[str] = Counter()

    def add(self, refusal: RejectedUpdate) -> None:
        known = refusal.reason in self.by_reason or len(self.by_reason) < _REASONS
        self.by_reason[refusal.reason if known else "other reasons"] += 1
        self.newest.append(refusal)

    @property
    def total(self) -> int:
        return self.by_reason.total()

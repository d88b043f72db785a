"""What the tests of each tracker write: a run in three goes."""

from collections.abc import Callable, Mapping, Sequence

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.records import Finish
from llmos_stream.tracking.sink import Run, Sink
from llmos_stream.tracking.tracker import Tracker

START_MS = 1_790_000_000_000
RUN = Run("ward", START_MS)
SETTINGS_GIVEN = {"aggregation.strategy": "mean", "aggregation.buffer_size": "4"}
FINISH = Finish(START_MS + 90_000, "target", "accuracy 0.97 reached 0.97", 8)


def points(first: int, last: int) -> list[Point]:
    found = []
    for step in range(first, last + 1):
        at = START_MS + 1000 * step + 5
        found.append(Point("version/contributions", step, at, 4.0))
        found.append(Point("client/ward-7/loss", step, at + 1, 1 / (1 + step)))
        found.append(Point("evaluation/accuracy", step, at + 400, 0.1 * step))
    return found


def put(
    sink: Sink, found: Sequence[Point], end: Finish | None = None, settings: Mapping[str, str] | None = None
) -> int:
    """Track these points as a run of the command does. Returns how many were new."""
    tracker = Tracker(sink)
    tracker.waiting += found
    tracker.write(RUN, SETTINGS_GIVEN)
    sink.describe(settings or SETTINGS_GIVEN)
    if end is not None:
        sink.finish(end)
    sink.close()
    return tracker.written


def in_steps(make: Callable[[], Sink]) -> None:
    """Track a run in three goes, the second of which finds nothing new, and its end."""
    changed = {**SETTINGS_GIVEN, "aggregation.buffer_size": "8"}
    new = [put(make(), points(0, 4)), put(make(), points(0, 4)), put(make(), points(0, 8), FINISH, changed)]
    assert new == [15, 0, 12], new


def expected() -> set[Point]:
    return set(points(0, 8))

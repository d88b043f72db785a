"""One tracker in use: what waits for it, and what it holds already, so that nothing is written twice."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from llmos_stream.reporting.history.points import Point
from llmos_stream.reporting.history.series import Window
from llmos_stream.tracking.sink import Run, Sink, TrackerUnavailable

_STEPS_KNOWN = 4096


@dataclass(slots=True)
class Tracker:
    """A sink, the points that wait for it, and by series the steps that it holds."""

    sink: Sink
    known: dict[str, Window] = field(default_factory=dict)
    waiting: list[Point] = field(default_factory=list)
    is_open: bool = False
    written: int = 0

    def write(self, run: Run, settings: Mapping[str, str]) -> None:
        """Give it what waits and is new. What waits is kept where it does not answer."""
        try:
            if not self.is_open:
                self._open(run)
                self.sink.describe(settings)
                self.is_open = True
            new = [point for point in self.waiting if self._window(point.name).is_new(point.step)]
            if new:
                self.sink.write(new)
        except TrackerUnavailable:
            self.is_open = False
            raise
        self.written += len(new)
        self.waiting.clear()

    def _open(self, run: Run) -> None:
        """Learn what it holds."""
        self.known = {}
        for name, step in sorted(self.sink.open(run), key=lambda point: point[1]):
            self._window(name).is_new(step)

    def _window(self, name: str) -> Window:
        return self.known.setdefault(name, Window(_STEPS_KNOWN))

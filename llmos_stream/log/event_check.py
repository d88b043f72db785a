"""Which events can be of this run: what tells of a version that there is not, or of another time, is passed over.

Anybody who may write to `<f>.events` can say anything there; evaluators and clients write to `<f>.evaluations`, and
evaluations count nowhere else. Versions and the end of the run stand in `<f>.control` too, written in one transaction
with their events; its readers may see the event a moment earlier.
"""

from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from llmos_stream.broker import Topics
from llmos_stream.log.control import ControlView
from llmos_stream.log.stream import OnForeign, PlacedEvent, foreign
from llmos_stream.runtime import Clock
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import LARGEST, site_fault, site_of
from llmos_stream.wire.events import whole

_PATIENCE_SECONDS = 5.0
_MOST_HELD = 10_000
_SKEW_MS = 24 * 3_600_000
"""How far the clocks of those who work for all may be apart. Clients' clocks may be anyhow."""
_OF_CLIENTS = frozenset({EventKind.CLIENT_JOINED, EventKind.CLIENT_LEFT, EventKind.UPDATE_SENT})


class _Held(NamedTuple):
    placed: PlacedEvent
    since: float


class EventCheck:
    """Passes events of a federation's topics on, each once `control` says that it can be. Others count as foreign.

    Those of a topic keep their order: what comes after an event that waits for `control` waits with it. So whoever
    sums up what happened by version gets the same, whether live or afterwards.
    """

    def __init__(self, topics: Topics, clock: Clock, on_foreign: OnForeign = foreign) -> None:
        self._topics = topics
        self._clock = clock
        self._on_foreign = on_foreign
        self._held: deque[_Held] = deque()
        self._first_ms: dict[str, int] = {}  # by topic: they are read side by side

    def take(self, found: Iterable[PlacedEvent], control: ControlView) -> list[Event]:
        """Return what is known to fit now, of `found` and of what was held back before."""
        now = self._clock.monotonic()
        for placed in found:
            if fault := self._fault(placed):
                self._on_foreign(placed.topic, placed.offset, fault)
            else:
                self._held.append(_Held(placed, now))
        passed = self._pass(control, now)
        if (too_many := len(self._held) - _MOST_HELD) > 0:
            passed += self._pass(control, now, too_many)
        return passed

    def _pass(self, control: ControlView, now: float, too_many: int = 0) -> list[Event]:
        """Return what fits, up to the first of its topic that waits; of those that wait, drop the oldest `too_many`."""
        passed, waiting, stopped = list[Event](), deque[_Held](), set[str]()
        for held in self._held:
            topic, offset = held.placed.topic, held.placed.offset
            unknown = self._unknown(held.placed, control)
            if unknown is None and topic not in stopped:
                passed.append(held.placed.event)
            elif unknown is not None and (now - held.since > _PATIENCE_SECONDS or too_many > 0):
                self._on_foreign(topic, offset, unknown)
            else:
                waiting.append(held)
                stopped.add(topic)
                continue
            too_many -= 1
        self._held = waiting
        return passed

    def rest(self, control: ControlView) -> list[Event]:
        """Return what fits at the end, when `control` has been read to its end; nothing is waited for any more."""
        return self._pass(control, self._clock.monotonic(), len(self._held))

    def _fault(self, placed: PlacedEvent) -> str | None:
        """Say why the event can never be of this run."""
        topic, event = placed.topic, placed.event
        if topic == self._topics.evaluations and (fault := evaluation_fault(event, self._clock)):
            return fault
        if topic == self._topics.events and site_of(event) is not None:
            return f"evaluations count in {self._topics.evaluations} alone"
        staleness, version = whole(event.data.get("staleness")), whole(event.data.get("version"))
        if staleness is not None and version is not None and staleness > version:
            return f"staleness {staleness} at version {version}"
        if event.kind in _OF_CLIENTS or site_of(event) is not None:
            return None
        if fault := _future_fault(event, self._clock):
            return fault
        first_ms = self._first_ms.setdefault(topic, event.time_ms)
        return "it is from before the run" if event.time_ms < first_ms - _SKEW_MS else None

    def _unknown(self, placed: PlacedEvent, control: ControlView) -> str | None:
        """Say what the event tells of that `control` does not know."""
        event = placed.event
        if event.kind in (EventKind.RUN_FINISHED, EventKind.RUN_RESUMED):
            return None if control.has_ended else "the run has not ended"
        version, newest = whole(event.data.get("version")), control.latest
        if version is not None and (newest is None or version > newest.version):
            return f"there is no version {version}"
        moved = control.evaluations_moved
        if (
            event.kind is EventKind.EVALUATION
            and placed.topic == self._topics.events
            and moved is not None
            and placed.offset >= moved
        ):
            return (
                f"evaluations count in {self._topics.evaluations} alone; an evaluator of an older release writes here"
            )
        return None


def _future_fault(event: Event, clock: Clock) -> str | None:
    return "it is of the future" if event.time_ms > clock.time_ms() + _SKEW_MS else None


def evaluation_fault(event: Event, clock: Clock) -> str | None:
    """Say why nobody of this federation can have measured it; null stands for a value that is not finite."""
    if event.kind is not EventKind.EVALUATION:
        return "it is no evaluation"
    if fault := site_fault(event) or (None if site_of(event) is not None else _future_fault(event, clock)):
        return fault
    metrics = event.data["metrics"]
    if not isinstance(metrics, dict):
        return "it has no metrics"
    for name, value in metrics.items():
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            return f"{str(name)[:100]} is {str(value)[:100]}"
        if name == "accuracy" and not 0 <= value <= 1:
            return f"an accuracy of {value:.6g} is none from 0 to 1"
    return None

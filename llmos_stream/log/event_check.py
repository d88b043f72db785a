"""Which events can be of this run: what tells of a version that there is not, or of another time, is passed over.

Anybody who may write to `<f>.events` can say anything there. Versions and the end of the run stand in `<f>.control`
too, written in one transaction with their events; its readers may see the event a moment earlier.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llmos_stream.log.control import ControlView
from llmos_stream.runtime import Clock
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.events import whole

_PATIENCE_SECONDS = 5.0
_MOST_HELD = 1000
_SKEW_MS = 24 * 3_600_000
"""How far the clocks of those who work for all may be apart. Clients' clocks may be anyhow."""
_OF_CLIENTS = frozenset({EventKind.CLIENT_JOINED, EventKind.CLIENT_LEFT, EventKind.UPDATE_SENT})


class _Held(NamedTuple):
    event: Event
    offset: int
    since: float


class EventCheck:
    """Passes events on, each once `control` says that it can be.

    Args:
        clock: The time.
        foreign: Told of an event that cannot be: its offset, and why.
    """

    def __init__(self, clock: Clock, foreign: Callable[[int, str], object]) -> None:
        self._clock = clock
        self._foreign = foreign
        self._held: deque[_Held] = deque()
        self._first_ms: int | None = None

    def take(self, found: Iterable[tuple[int, Event]], control: ControlView) -> list[Event]:
        """Return what is known to fit now, of `found` and of what was held back before."""
        now = self._clock.monotonic()
        for offset, event in found:
            if fault := self._fault(event):
                self._foreign(offset, fault)
            else:
                self._held.append(_Held(event, offset, now))
        passed, waiting = [], deque[_Held]()
        for held in self._held:
            if (unknown := _unknown(held.event, control)) is None:
                passed.append(held.event)
            elif now - held.since > _PATIENCE_SECONDS:
                self._foreign(held.offset, unknown)
            else:
                waiting.append(held)
        while len(waiting) > _MOST_HELD:
            self._foreign(waiting[0].offset, "there are too many like it")
            waiting.popleft()
        self._held = waiting
        return passed

    def rest(self, control: ControlView) -> list[Event]:
        """Return what fits at the end, when `control` has been read to its end; nothing is waited for any more."""
        passed = self.take((), control)
        for held in self._held:
            self._foreign(held.offset, _unknown(held.event, control) or "")
        self._held.clear()
        return passed

    def _fault(self, event: Event) -> str | None:
        """Say why the event can never be of this run."""
        staleness, version = whole(event.data.get("staleness")), whole(event.data.get("version"))
        if staleness is not None and version is not None and staleness > version:
            return f"staleness {staleness} at version {version}"
        if event.kind in _OF_CLIENTS:
            return None
        if event.time_ms > self._clock.time_ms() + _SKEW_MS:
            return "it is of the future"
        if self._first_ms is None:
            self._first_ms = event.time_ms
        return "it is from before the run" if event.time_ms < self._first_ms - _SKEW_MS else None


def _unknown(event: Event, control: ControlView) -> str | None:
    """Say what the event tells of that `control` does not know."""
    if event.kind is EventKind.RUN_FINISHED:
        return None if control.finished is not None else "the run has not ended"
    version, newest = whole(event.data.get("version")), control.latest
    if version is None or (newest is not None and version <= newest.version):
        return None
    return f"there is no version {version}"

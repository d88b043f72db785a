"""What the page knows of a federation: one state for all viewers, bounded however long the run is."""

from collections.abc import Callable, Mapping
from enum import StrEnum, unique
from time import time
from typing import NamedTuple

from llmos_stream.dashboard.recent_versions import RecentVersions
from llmos_stream.errors import Rejected
from llmos_stream.log import ControlView
from llmos_stream.reporting import History
from llmos_stream.reporting.history.totals import CHARTED
from llmos_stream.types import Event, EventKind, VersionHead
from llmos_stream.wire.evaluations import site_of
from llmos_stream.wire.events import metrics, whole

_POINTS = 400
_CLIENTS = 1000
_SHOWN = (*CHARTED, "perplexity")
"""What is shown of each version."""
_SCORES = 400
_SILENT_MS = 15_000


@unique
class Status(StrEnum):
    """What the federation does."""

    UNREACHED = "unreached"  # the broker has not answered yet
    WAITING = "waiting"  # for a first version, or for clients
    TRAINING = "training"
    PAUSED = "paused"
    FINISHED = "finished"
    SILENT = "silent"  # no event and no beat came for a while


class ControlSnapshot(NamedTuple):
    """What `<f>.control` says now. `lag` counts records, `pace_seconds` separates two updates of a client."""

    paused: bool = False
    promoted: int | None = None
    finished: str | None = None
    lag: int | None = None
    pace_seconds: float | None = None


class FederationView:
    """Folds the log into a state. `changes` rises whenever the page may look different.

    A view that begins with `reached=False` waits for the broker's first answer, until `mark_reached` reports it.
    """

    def __init__(self, federation: str, clock: Callable[[], float] = time, *, reached: bool = True) -> None:
        self.federation = federation
        self._reached = reached
        self.history = History(limit=_POINTS, client_limit=_CLIENTS)
        self.versions = RecentVersions()
        self.control = ControlSnapshot()
        self.changes = 0
        self._clock = clock
        self._beats = 0
        self._beat_ms = 0
        self._scores: dict[int, Mapping[str, float]] = {}

    @property
    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    @property
    def news_ms(self) -> int | None:
        """Time of the last event or beat, never ahead of this clock."""
        times = [at for at in (self.history.end_ms, self._beat_ms) if at]
        return min(max(times), self.now_ms) if times else None

    @property
    def status(self) -> Status:
        if not self._reached:
            return Status.UNREACHED
        if self.history.finish is not None or self.control.finished is not None:
            return Status.FINISHED
        if self.news_ms is not None and self.now_ms - self.news_ms > _SILENT_MS:
            return Status.SILENT
        if self.control.paused:
            return Status.PAUSED
        return Status.TRAINING if self.history.version is not None and self._anybody() else Status.WAITING

    def mark_reached(self) -> None:
        self._reached = True
        self.changes += 1

    def add_event(self, event: Event) -> None:
        """Fold an event in; skip one that is not of the closed table."""
        try:
            self.history.add(event)
        except Rejected:
            return
        is_central = event.kind is EventKind.EVALUATION and site_of(event) is None
        if is_central and (version := whole(event.data["version"])) is not None:
            found = metrics(event.data["metrics"]) or {}
            self._scores.setdefault(version, {name: found[name] for name in _SHOWN if name in found})
            if len(self._scores) > _SCORES:
                del self._scores[min(self._scores)]
        self.changes += 1

    def update_control(self, control: ControlView, *, live: bool) -> None:
        """Note what `<f>.control` says. A new beat counts as news only if it is `live`: others may be old."""
        leader = control.leader
        snapshot = ControlSnapshot(
            paused=control.paused,
            promoted=None if control.promoted is None else control.promoted.version,
            finished=None if control.finished is None else control.finished.reason,
            lag=None if leader is None or leader.left else leader.lag,
            pace_seconds=None if leader is None or leader.left else leader.pace_seconds,
        )
        if live and control.beats != self._beats:
            self._beat_ms = self.now_ms
        self._beats = control.beats
        if snapshot != self.control:
            self.control = snapshot
            self.changes += 1

    def add_version(self, head: VersionHead, partition: int, offset: int) -> None:
        """Note a version whose message begins at `offset`."""
        self.versions.add(head, partition, offset)
        self.changes += 1

    def score(self, version: int) -> Mapping[str, float]:
        """Return the metrics of one of the newest versions; empty where it was not evaluated."""
        return self._scores.get(version, {})

    def _anybody(self) -> bool:
        now = self.now_ms
        return any(client.present(now) for client in self.history.clients)

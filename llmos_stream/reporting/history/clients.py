"""Totals of each client, and which clients are slow, late or gone."""

import statistics
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, unique

from llmos_stream.reporting.history.series import Mean, Recent, Window

NAME_LENGTH = 128
"""Characters of a client's id that are kept; the settings allow no longer one."""
STALENESS_CAP = 100
"""Staleness from here on is counted as this much in a client's histogram."""
SLOW_FACTOR = 2.0
"""A client is slow when its training takes this many times the median client's."""
LATE_FACTOR = 3.0
"""A client is late when it is silent for this many usual intervals (its own or the median, the longer one)."""
LATE_SECONDS = 5.0
"""Silence shorter than this is never late."""
_PRESENCE_MARKS = 32
_OTHER_IDS = 100_000


@unique
class ClientStatus(StrEnum):
    """What a client does, by its events."""

    TRAINING = "training"
    SLOW = "slow"
    LATE = "late"
    LEFT = "left"
    DONE = "done"  # there to the end of a run that is over


_TROUBLES = {ClientStatus.SLOW: "slow", ClientStatus.LATE: "late", ClientStatus.LEFT: "gone"}
"""In words that say themselves what they count: "4 left" could mean that 4 remain."""


def troubles(states: Sequence[ClientStatus]) -> list[str]:
    """How many clients are slow, late or gone, such as `1 slow`."""
    return [f"{states.count(state)} {word}" for state, word in _TROUBLES.items() if state in states]


@dataclass(slots=True)
class ClientStats:
    """The totals of one client; times in milliseconds, None where no event says."""

    client_id: str
    num_examples: int | None = None
    examples_ms: int = -1
    first_seen_ms: int | None = None
    last_seen_ms: int | None = None
    joined_ms: int | None = None
    left_ms: int | None = None
    presence: deque[tuple[int, bool]] = field(default_factory=lambda: deque(maxlen=_PRESENCE_MARKS))
    """(time, whether it joined), in order of arrival."""
    sent: int = 0
    last_sent_ms: int | None = None
    folded: int = 0
    first_update_ms: int | None = None
    last_update_ms: int | None = None
    duplicates: int = 0
    rejected: int = 0
    refused_in_a_row: int = 0
    """Refusals since an update of it was folded, and so the repeats."""
    refused_since_ms: int = 0
    """When the first of them came."""
    repeated_in_a_row: int = 0
    last_reason: str = ""
    histogram: Counter[int] = field(default_factory=Counter)
    """Updates by staleness, capped at `STALENESS_CAP`."""
    staleness: Mean = field(default_factory=Mean)
    last_staleness: int | None = None
    last_sequence: int = -1
    train_seconds: Mean = field(default_factory=Mean)
    weight: float = 0.0
    bytes_sent: int = 0
    seen_sent: Window = field(default_factory=Window)
    seen_folded: Window = field(default_factory=Window)

    def note_seen(self, time_ms: int) -> None:
        self.first_seen_ms = _least(self.first_seen_ms, time_ms)
        self.last_seen_ms = _most(self.last_seen_ms, time_ms)

    def note_examples(self, num_examples: int | None, time_ms: int) -> None:
        """Note how many examples it has; the newest event counts."""
        if num_examples is not None and time_ms >= self.examples_ms:
            self.num_examples, self.examples_ms = num_examples, time_ms

    def note_update(self, time_ms: int) -> None:
        self.first_update_ms = _least(self.first_update_ms, time_ms)
        self.last_update_ms = _most(self.last_update_ms, time_ms)

    def note_folded(self, sequence: int, staleness: int | None, weight: float) -> None:
        self.folded += 1
        self.refused_in_a_row = self.repeated_in_a_row = 0
        self.weight += weight
        self.staleness.add(staleness)
        if staleness is not None:
            self.histogram[min(staleness, STALENESS_CAP)] += 1
        if sequence > self.last_sequence:
            self.last_sequence, self.last_staleness = sequence, staleness

    def note_refused(self, reason: str, time_ms: int) -> None:
        self.rejected += 1
        if not self.refused_in_a_row:
            self.refused_since_ms = time_ms
        self.refused_in_a_row += 1
        self.last_reason = reason
        self.note_seen(time_ms)

    def note_repeated(self, time_ms: int) -> None:
        self.duplicates += 1
        self.repeated_in_a_row += 1
        self.note_seen(time_ms)

    def note_presence(self, time_ms: int, joined: bool) -> None:
        """Note a join or a leave; a repeated one counts once."""
        if (time_ms, joined) not in self.presence:
            self.presence.append((time_ms, joined))
        if joined:
            self.joined_ms = _most(self.joined_ms, time_ms)
        else:
            self.left_ms = _most(self.left_ms, time_ms)

    def present(self, now_ms: int) -> bool:
        """Whether it did anything after it last left, by its own clock; a leave after `now_ms` does not count yet."""
        active_ms = max((t for t in (self.joined_ms, self.last_sent_ms) if t is not None), default=-1)
        return self.left_ms is None or self.left_ms > now_ms or active_ms > self.left_ms

    @property
    def interval_seconds(self) -> float | None:
        """Mean seconds from one update to the next."""
        gaps = max(self.sent, self.folded) - 1
        if gaps < 1 or self.first_update_ms is None or self.last_update_ms is None:
            return None
        return (self.last_update_ms - self.first_update_ms) / gaps / 1000

    def silent_seconds(self, now_ms: int) -> float | None:
        """Return the seconds since its last event; 0 where its clock runs ahead."""
        return None if self.last_seen_ms is None else max(0.0, (now_ms - self.last_seen_ms) / 1000)

    def absorb(self, other: "ClientStats") -> None:
        """Add the totals of a client that loses its row."""
        self.sent += other.sent
        self.folded += other.folded
        self.duplicates += other.duplicates
        self.rejected += other.rejected
        self.weight += other.weight
        self.bytes_sent += other.bytes_sent
        self.histogram.update(other.histogram)
        for mine, theirs in ((self.staleness, other.staleness), (self.train_seconds, other.train_seconds)):
            mine.total += theirs.total
            mine.count += theirs.count


class ClientTable:
    """At most `limit` clients with a row each; the rest share one row, `others`.

    When all rows are taken, the client that left first loses its row, and its totals go to `others`. Where none has
    left, the new client goes to `others`. Updates there are de-duplicated by the newest 4096 identities only, and its
    clients counted up to 100 000. `on_evicted` is called with each client that loses its row.
    """

    def __init__(self, limit: int, on_evicted: Callable[[str], None]) -> None:
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        self._limit = limit
        self._on_evicted = on_evicted
        self._rows: dict[str, ClientStats] = {}
        self._left: dict[str, None] = {}
        self._other_ids: set[str] = set()
        self.others = ClientStats("")
        self._other_identities = Recent()

    def __iter__(self) -> Iterator[ClientStats]:
        return iter(self._rows.values())

    def __len__(self) -> int:
        """Number of clients, with or without a row."""
        return len(self._rows) + len(self._other_ids)

    def get(self, client_id: str) -> ClientStats | None:
        return self._rows.get(client_id[:NAME_LENGTH])

    def touch(self, client_id: str) -> ClientStats:
        """Return the client's row, a new one where there is room, or `others`."""
        client_id = client_id[:NAME_LENGTH]
        if client_id in self._rows:
            return self._rows[client_id]
        if len(self._rows) >= self._limit and not self._make_room():
            if len(self._other_ids) < _OTHER_IDS:
                self._other_ids.add(client_id)
            return self.others
        self._other_ids.discard(client_id)
        return self._rows.setdefault(client_id, ClientStats(client_id))

    def is_new(self, client: ClientStats, window: Window, kind: str, client_id: str, sequence: int) -> bool:
        """Whether this identity is new, by the client's own `window` where it has a row."""
        if client is self.others:
            return self._other_identities.is_new((kind, client_id[:NAME_LENGTH], sequence))
        return window.is_new(sequence)

    def left(self, client: ClientStats) -> None:
        """Note that `client` may lose its row."""
        if client is not self.others:
            self._left.pop(client.client_id, None)
            self._left[client.client_id] = None

    def _make_room(self) -> bool:
        while self._left:
            client_id = next(iter(self._left))
            del self._left[client_id]
            row = self._rows[client_id]
            if not row.present(row.left_ms or 0):
                self.others.absorb(self._rows.pop(client_id))
                if len(self._other_ids) < _OTHER_IDS:
                    self._other_ids.add(client_id)
                self._on_evicted(client_id)
                return True
        return False

    def states(self, now_ms: int, finished: bool) -> dict[str, ClientStatus]:
        """Return the status of each client with a row; slow and late are relative to the medians of all."""
        train = _median_low([client.train_seconds.value for client in self])
        interval = _median_low([client.interval_seconds for client in self])
        usual = ClientStatus.DONE if finished else ClientStatus.TRAINING
        # Clients leave because the run has ended, often in the same millisecond: that is not early.
        as_of_ms = now_ms - 1 if finished else now_ms
        return {client.client_id: _trouble(client, as_of_ms, train, interval) or usual for client in self}


def _trouble(client: ClientStats, now_ms: int, train: float | None, interval: float | None) -> ClientStatus | None:
    if not client.present(now_ms):
        return ClientStatus.LEFT
    silent = client.silent_seconds(now_ms)
    usual = max((s for s in (client.interval_seconds, interval) if s is not None), default=None)
    if silent is not None and usual is not None and silent > max(LATE_SECONDS, LATE_FACTOR * usual):
        return ClientStatus.LATE
    own = client.train_seconds.value
    if own is not None and train is not None and own > SLOW_FACTOR * train:
        return ClientStatus.SLOW
    return None


def _median_low(values: list[float | None]) -> float | None:
    # The lower median: of two clients the slower one is slow, which their mean would hide.
    known = [value for value in values if value is not None]
    return statistics.median_low(known) if known else None


def _least(known: int | None, new: int) -> int:
    return new if known is None else min(known, new)


def _most(known: int | None, new: int) -> int:
    return new if known is None else max(known, new)

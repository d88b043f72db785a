"""One partition as a pure data structure: append, transactions, reading, retention and compaction.

No clock, no lock, no asyncio. Offsets behave as Kafka's do: a commit or an abort takes an offset of its
own, and nobody sees a record at or beyond the last stable offset, which is where the oldest open
transaction began.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from operator import attrgetter
from typing import Protocol

from llmos_stream.broker.placement import record_bytes
from llmos_stream.broker.ports import Record
from llmos_stream.errors import OffsetGone

_offset = attrgetter("record.offset")
_FEWEST_TO_COMPACT = 64
_LARGE = 1 << 16
"""Values of so many bytes are put into a store, where there is one."""
_READ_BYTES = 1 << 23
"""How many bytes of stored values one read takes into memory, but for the last of them."""


class ValueStore(Protocol):
    """Where a large value lies, perhaps outside memory. No reference to it, and its room is given back."""

    def append(self, part: memoryview, /) -> None: ...

    def __iter__(self) -> Iterator[bytes | memoryview]: ...


@dataclass(frozen=True, slots=True)
class _Entry:
    """A record and its size. Its value may lie in `store`: then the record here has none."""

    record: Record
    size: int
    store: ValueStore | None

    @property
    def is_tombstone(self) -> bool:
        return self.record.value is None and self.store is None

    def whole(self) -> Record:
        return self.record if self.store is None else replace(self.record, value=b"".join(self.store))


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be deleted. Kafka's `cleanup.policy`, `retention.*`; None keeps without limit."""

    compact: bool
    delete: bool
    retention_ms: int | None
    retention_bytes: int | None
    tombstone_ms: int

    @classmethod
    def of(cls, config: Mapping[str, str], most_bytes: int) -> "Policy":
        """From a topic's configuration, with Kafka's defaults; `most_bytes` bounds every topic that deletes."""
        cleanup = config.get("cleanup.policy", "delete").split(",")
        age = int(config.get("retention.ms", 7 * 24 * 3_600_000))
        size = int(config.get("retention.bytes", -1))
        return cls(
            compact="compact" in cleanup,
            delete="delete" in cleanup,
            retention_ms=age if age >= 0 else None,
            retention_bytes=min(size, most_bytes) if size >= 0 else most_bytes,
            tombstone_ms=int(config.get("delete.retention.ms", 24 * 3_600_000)),
        )


class PartitionLog:
    """The records of one partition. `start` is the oldest offset held, `end` the next to be given.

    `store` makes what a large value is kept in; None: all are kept in memory.
    """

    def __init__(self, policy: Policy, store: Callable[[], ValueStore] | None = None) -> None:
        self.start = 0
        self.end = 0
        self.bytes = 0
        self.policy = policy
        self._store = store
        self._entries: list[_Entry] = []
        self._open: dict[int, list[int]] = {}
        self._compact_at = _FEWEST_TO_COMPACT

    @property
    def last_stable(self) -> int:
        """The first offset that readers do not see yet."""
        return min((offsets[0] for offsets in self._open.values()), default=self.end)

    def append(self, record: Record, transaction: int | None) -> None:
        """Add a record, whose offset is `end`; within a transaction it stays unseen until that ends.

        What the store raises is raised on; then nothing has changed.
        """
        entry = self._entry(record)
        if transaction is not None:
            self._open.setdefault(transaction, []).append(record.offset)
        self._entries.append(entry)
        self.bytes += entry.size
        self.end += 1
        if self._is_due(record.timestamp_ms):
            self.clean(record.timestamp_ms)

    def has_open(self, transaction: int) -> bool:
        """Whether a transaction wrote here and has not ended."""
        return transaction in self._open

    def commit(self, transaction: int) -> None:
        """End a transaction that wrote here; what it wrote can be seen."""
        del self._open[transaction]
        self.end += 1

    def abort(self, transaction: int) -> None:
        """End a transaction that wrote here; what it wrote is gone, its offsets are not given again."""
        offsets = self._open.pop(transaction)
        dropped = set(offsets)
        first = bisect_left(self._entries, offsets[0], key=_offset)
        self.bytes -= sum(entry.size for entry in self._entries[first:] if entry.record.offset in dropped)
        self._entries[first:] = [entry for entry in self._entries[first:] if entry.record.offset not in dropped]
        self.end += 1

    def read(self, position: int, most: int) -> tuple[list[Record], int]:
        """Up to `most` visible records from `position` on, and the position after them.

        Of those whose values are stored it takes as many as fit into a few MiB, and one at least.

        Raises OffsetGone when `position` is older than `start` or beyond `end`.
        """
        if not self.start <= position <= self.end:
            raise OffsetGone(f"offset {position} is not among {self.start} to {self.end}")
        last_stable = self.last_stable
        if position >= last_stable:
            return [], position
        first = bisect_left(self._entries, position, key=_offset)
        found: list[Record] = []
        stored = 0
        for entry in self._entries[first : first + most]:
            if entry.record.offset >= last_stable:
                return found, last_stable
            found.append(entry.whole())
            stored += 0 if entry.store is None else entry.size
            if stored >= _READ_BYTES:
                return found, entry.record.offset + 1
        return found, (found[-1].offset + 1 if len(found) == most else last_stable)

    def clean(self, now_ms: int) -> None:
        """Delete all that the policy does not keep. What is at or beyond the last stable offset stays."""
        if self.policy.delete:
            self._delete_oldest(now_ms)
        if self.policy.compact:
            self._compact(now_ms)

    def _is_due(self, now_ms: int) -> bool:
        """Whether an eighth or more can go, so that the cost of one append is constant on average."""
        limit = self.policy.retention_bytes
        if self.policy.delete and (
            (limit is not None and self.bytes > limit + limit // 8)
            or self._is_old(self._entries[len(self._entries) // 8].record, now_ms)
        ):
            return True
        return self.policy.compact and len(self._entries) >= self._compact_at

    def _delete_oldest(self, now_ms: int) -> None:
        stable, limit = self.last_stable, self.policy.retention_bytes
        gone = 0
        for entry in self._entries:
            too_much = limit is not None and self.bytes > limit
            if entry.record.offset >= stable or not (too_much or self._is_old(entry.record, now_ms)):
                break
            self.bytes -= entry.size
            self.start = entry.record.offset + 1
            gone += 1
        del self._entries[:gone]

    def _is_old(self, record: Record, now_ms: int) -> bool:
        age = self.policy.retention_ms
        return age is not None and record.timestamp_ms < now_ms - age

    def _compact(self, now_ms: int) -> None:
        """Keep the latest record of each key; drop tombstones once they are old."""
        stable = bisect_left(self._entries, self.last_stable, key=_offset)
        latest = {entry.record.key: entry.record.offset for entry in self._entries[:stable]}
        oldest_tombstone = now_ms - self.policy.tombstone_ms
        self._entries[:stable] = [
            entry
            for entry in self._entries[:stable]
            if latest[entry.record.key] == entry.record.offset
            and not (entry.is_tombstone and entry.record.timestamp_ms < oldest_tombstone)
        ]
        self.bytes = sum(entry.size for entry in self._entries)
        self._compact_at = max(2 * len(self._entries), _FEWEST_TO_COMPACT)

    def _entry(self, record: Record) -> _Entry:
        size = record_bytes(record.key, record.value, record.headers)
        if self._store is None or record.value is None or len(record.value) < _LARGE:
            return _Entry(record, size, None)
        store = self._store()
        store.append(memoryview(record.value))
        return _Entry(replace(record, value=None), size, store)

"""One partition as a pure data structure: append, transactions, reading, retention and compaction.

No clock, no lock, no asyncio. Offsets behave as Kafka's do: a commit or an abort takes an offset of its
own, and nobody sees a record at or beyond the last stable offset, which is where the oldest open
transaction began.
"""

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter

from llmos_stream.broker.placement import record_bytes
from llmos_stream.broker.ports import Record
from llmos_stream.errors import OffsetGone

_offset = attrgetter("offset")
_FEWEST_TO_COMPACT = 64


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
    """The records of one partition. `start` is the oldest offset held, `end` the next to be given."""

    def __init__(self, policy: Policy) -> None:
        self.start = 0
        self.end = 0
        self.bytes = 0
        self._policy = policy
        self._records: list[Record] = []
        self._open: dict[int, list[int]] = {}
        self._compact_at = _FEWEST_TO_COMPACT

    @property
    def last_stable(self) -> int:
        """The first offset that readers do not see yet."""
        return min((offsets[0] for offsets in self._open.values()), default=self.end)

    def append(self, record: Record, transaction: int | None) -> None:
        """Add a record, whose offset is `end`; within a transaction it stays unseen until that ends."""
        if transaction is not None:
            self._open.setdefault(transaction, []).append(record.offset)
        self._records.append(record)
        self.bytes += _size(record)
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
        first = bisect_left(self._records, offsets[0], key=_offset)
        self.bytes -= sum(_size(record) for record in self._records[first:] if record.offset in dropped)
        self._records[first:] = [record for record in self._records[first:] if record.offset not in dropped]
        self.end += 1

    def read(self, position: int, most: int) -> tuple[list[Record], int]:
        """Up to `most` visible records from `position` on, and the position after them.

        Raises OffsetGone when `position` is older than `start` or beyond `end`.
        """
        if not self.start <= position <= self.end:
            raise OffsetGone(f"offset {position} is not among {self.start} to {self.end}")
        last_stable = self.last_stable
        if position >= last_stable:
            return [], position
        first = bisect_left(self._records, position, key=_offset)
        found = self._records[first : first + most]
        if found and found[-1].offset >= last_stable:
            del found[bisect_left(found, last_stable, key=_offset) :]
        return found, (found[-1].offset + 1 if len(found) == most else last_stable)

    def clean(self, now_ms: int) -> None:
        """Delete all that the policy does not keep. What is at or beyond the last stable offset stays."""
        if self._policy.delete:
            self._delete_oldest(now_ms)
        if self._policy.compact:
            self._compact(now_ms)

    def _is_due(self, now_ms: int) -> bool:
        """Whether an eighth or more can go, so that the cost of one append is constant on average."""
        limit = self._policy.retention_bytes
        if self._policy.delete and (
            (limit is not None and self.bytes > limit + limit // 8)
            or self._is_old(self._records[len(self._records) // 8], now_ms)
        ):
            return True
        return self._policy.compact and len(self._records) >= self._compact_at

    def _delete_oldest(self, now_ms: int) -> None:
        stable, limit = self.last_stable, self._policy.retention_bytes
        gone = 0
        for record in self._records:
            too_much = limit is not None and self.bytes > limit
            if record.offset >= stable or not (too_much or self._is_old(record, now_ms)):
                break
            self.bytes -= _size(record)
            self.start = record.offset + 1
            gone += 1
        del self._records[:gone]

    def _is_old(self, record: Record, now_ms: int) -> bool:
        age = self._policy.retention_ms
        return age is not None and record.timestamp_ms < now_ms - age

    def _compact(self, now_ms: int) -> None:
        """Keep the latest record of each key; drop tombstones once they are old."""
        stable = bisect_left(self._records, self.last_stable, key=_offset)
        latest = {record.key: record.offset for record in self._records[:stable]}
        oldest_tombstone = now_ms - self._policy.tombstone_ms
        self._records[:stable] = [
            record
            for record in self._records[:stable]
            if latest[record.key] == record.offset
            and (record.value is not None or record.timestamp_ms >= oldest_tombstone)
        ]
        self.bytes = sum(map(_size, self._records))
        self._compact_at = max(2 * len(self._records), _FEWEST_TO_COMPACT)


def _size(record: Record) -> int:
    return record_bytes(record.key, record.value, record.headers)

"""Which offsets of `<f>.updates` may be committed.

An offset may be committed once every message that begins before it is settled: folded into a
committed version, refused, or a repeat. What is buffered or half received holds it back, so that a
restart reads it again.
"""

from collections.abc import Callable, Mapping, Set

from llmos_stream.broker import TopicPartition

Settled = Mapping[TopicPartition, Set[int]]
"""First offsets of messages, by partition."""


class SafeOffsets:
    """Tracks, for each partition, how far the log has been read and which messages hold it back."""

    def __init__(self, low_water: Callable[[int], int | None]) -> None:
        """`low_water(partition)` is the first offset of the oldest half-received message."""
        self._low_water = low_water
        self._read: dict[TopicPartition, int] = {}
        self._held: dict[TopicPartition, set[int]] = {}
        self._committed: dict[TopicPartition, int] = {}

    def read(self, at: TopicPartition, offset: int) -> None:
        """The record at `offset` has been taken in."""
        self._read[at] = max(offset + 1, self._read.get(at, 0))

    def hold(self, at: TopicPartition, first_offset: int) -> None:
        """A message that begins at `first_offset` is not settled yet."""
        self._held.setdefault(at, set()).add(first_offset)

    def release(self, at: TopicPartition, first_offset: int) -> None:
        """It is settled by a refusal or as a repeat."""
        self._held.get(at, set()).discard(first_offset)

    def committable(self, settled: Settled | None = None) -> dict[TopicPartition, int]:
        """The next offset to read after a restart, once `settled` are settled too; only where it moved on."""
        moved = {}
        for at, read in self._read.items():
            held = self._held.get(at, set()) - (settled or {}).get(at, set())
            low = self._low_water(at.partition)
            offset = min([read, *held, *([] if low is None else [low])])
            if offset > self._committed.get(at, 0):
                moved[at] = offset
        return moved

    def committed(self, offsets: Mapping[TopicPartition, int], settled: Settled | None = None) -> None:
        """A transaction with `offsets` has been committed, and `settled` with it."""
        self._committed.update(offsets)
        for at, first_offsets in (settled or {}).items():
            self._held.get(at, set()).difference_update(first_offsets)

"""Which offsets of `<f>.updates` may be committed.

An offset may be committed once every message that begins before it is settled: folded into a
committed version, refused, or a repeat. What is buffered or half received holds it back, so that a
restart reads it again.
"""

from collections.abc import Callable, Mapping, Sequence

from llmos_stream.broker import TopicPartition
from llmos_stream.types import Contribution


class SafeOffsets:
    """Tracks, for each partition, how far the log has been read and which messages hold it back."""

    def __init__(self, low_water: Callable[[int], int | None]) -> None:
        """`low_water(partition)` is the first offset of the oldest half-received message."""
        self._low_water = low_water
        self._read: dict[TopicPartition, int] = {}
        self._held: set[tuple[int, int]] = set()  # partition and first offset
        self._committed: dict[TopicPartition, int] = {}

    def read(self, at: TopicPartition, offset: int) -> None:
        """The record at `offset` has been taken in."""
        self._read[at] = max(offset + 1, self._read.get(at, 0))

    def hold(self, partition: int, first_offset: int) -> None:
        """A message that begins at `first_offset` is not settled yet."""
        self._held.add((partition, first_offset))

    def release(self, partition: int, first_offset: int) -> None:
        """It is settled by a refusal or as a repeat."""
        self._held.discard((partition, first_offset))

    def committable(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
        """The next offset to read after a restart, once `manifest` is settled too; only where it moved on."""
        held = self._held - _places(manifest)
        moved = {}
        for at, read in self._read.items():
            low = self._low_water(at.partition)
            waiting = [offset for partition, offset in held if partition == at.partition]
            offset = min([read, *waiting, *([] if low is None else [low])])
            if offset > self._committed.get(at, 0):
                moved[at] = offset
        return moved

    def committed(self, offsets: Mapping[TopicPartition, int], manifest: Sequence[Contribution] = ()) -> None:
        """A transaction with `offsets` has been committed, and a version with `manifest` with it."""
        self._committed.update(offsets)
        self._held -= _places(manifest)


def _places(manifest: Sequence[Contribution]) -> set[tuple[int, int]]:
    return {(item.partition, item.offset) for item in manifest}

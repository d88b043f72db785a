"""What waits for its version: where each update begins, its bytes, and what folding it cost."""

from collections.abc import Sequence
from typing import NamedTuple

from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.types import Contribution, UpdateHead


class Waiting(NamedTuple):
    """One update: where it begins, its head, and the span of its folding."""

    partition: int
    offset: int
    head: UpdateHead
    span: TraceParent | None


class Batch(NamedTuple):
    """The updates of one version, in the order of its manifest, and how long folding them took."""

    updates: Sequence[Waiting] = ()
    fold_seconds: float = 0.0


class WaitingUpdates:
    """The updates that were folded since the last version."""

    def __init__(self) -> None:
        self._updates: dict[tuple[str, int], Waiting] = {}
        self._fold_seconds = 0.0

    def __len__(self) -> int:
        return len(self._updates)

    def add(self, update: Waiting) -> None:
        self._updates[update.head.client_id, update.head.sequence] = update

    def spent(self, seconds: float) -> None:
        """Looking at an update took this long, whether it was folded or not."""
        self._fold_seconds += seconds

    def has(self, client_id: str, sequence: int, partition: int, offset: int) -> bool:
        """Whether this update waits, and begins there."""
        waiting = self._updates.get((client_id, sequence))
        return waiting is not None and waiting[:2] == (partition, offset)

    def take(self, manifest: Sequence[Contribution]) -> Batch:
        """What becomes a version with this manifest, and the time since the one before."""
        batch = Batch([self._updates.pop((item.client_id, item.sequence)) for item in manifest], self._fold_seconds)
        self._fold_seconds = 0.0
        return batch

"""Where an aggregator's updates come from: its clients (`intake.Intake`), or what another run has accepted."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from llmos_stream.broker import TopicPartition
from llmos_stream.core import Update
from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.types import Contribution
from llmos_stream.wire import Refusal


class UpdateSource(Protocol):
    """Gives updates in the order of the log, and keeps account of the offsets that may be committed.

    An update's delta may be overwritten as soon as the next one is asked for, unless it is kept (`core.Delta.keep`).

    Every update given is held until it is settled: released, or in the manifest of a committed version.
    """

    async def resume(self, checkpoint: Mapping[str, object]) -> None:
        """Go on after a restart with what `checkpoint` gave when the newest version was committed."""

    def receive(self, timeout_seconds: float, version: int) -> AsyncGenerator[Update | Refusal, None]:
        """Give what the next records hold; nothing at the time-out. `version` is the aggregator's newest."""

    def version_size(self) -> int | None:
        """Of how many updates the version is to be made that the update given last opens, where that is known."""

    def resumed_after_pause(self) -> None:
        """A pause is over: the next updates may have waited for long, and some may be deleted."""

    def span_of(self, partition: int, offset: int) -> TraceParent | None:
        """Return the span that sent the update there, where it is known. Asked once an update."""

    def release(self, partition: int, offset: int) -> None:
        """Settle the update there, as refused or as a repeat."""

    def committable_offsets(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
        """Return the offsets to restart from, with `manifest` settled too; only those that moved on."""

    def committed(self, offsets: Mapping[TopicPartition, int], manifest: Sequence[Contribution] = ()) -> None:
        """Note that a transaction with `offsets` is committed, and with it a version with `manifest`."""

    async def lag(self) -> int:
        """Return how many records are known to be unread. Does not ask the broker."""

    def take_busy_seconds(self) -> float:
        """Return the seconds that collecting, verifying and decoding took since the last call."""

    def checkpoint(self, version: int) -> Mapping[str, object]:
        """Return what `resume` must know, as JSON can hold it, once `version` is committed."""

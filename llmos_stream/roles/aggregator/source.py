"""Where an aggregator's updates come from: its clients (`intake.Intake`), or what another run has accepted."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Protocol

from llmos_stream.broker import TopicPartition
from llmos_stream.core import Update
from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.types import Contribution
from llmos_stream.wire import Refusal


class Source(Protocol):
    """Gives updates in the order of the log, and keeps account of the offsets that may be committed.

    An update's delta may be overwritten as soon as the next one is asked for, unless it is kept (`core.Delta.keep`).

    Every update given is held until it is settled: released, or in the manifest of a committed version.
    """

    async def resume(self, remembered: Mapping[str, object]) -> None:
        """Go on after a restart with what `remember` gave when the newest version was committed."""

    def receive(self, timeout_seconds: float, version: int) -> AsyncGenerator[Update | Refusal, None]:
        """What the next records amount to; nothing at the time-out. `version` is the aggregator's present one."""

    def rested(self) -> None:
        """A pause is over: what is asked for next may have waited for long."""

    def came(self, partition: int, offset: int) -> TraceParent | None:
        """The span that the update there was sent from, where that is known. Asked for once."""

    def release(self, partition: int, offset: int) -> None:
        """The update there is settled by a refusal or as a repeat."""

    def safe(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
        """The next offsets to read after a restart, once `manifest` is settled too; only those that moved on."""

    def committed(self, offsets: Mapping[TopicPartition, int], manifest: Sequence[Contribution] = ()) -> None:
        """A transaction with `offsets` has been committed, and a version with `manifest` with it."""

    async def lag(self) -> int:
        """How many records are known to be still to be read. Asks nobody."""

    def take_seconds(self) -> float:
        """How long collecting, verifying and decoding took since this was asked last."""

    def remember(self, version: int) -> Mapping[str, object]:
        """What `resume` must know, as JSON can say it, once `version` is committed."""

"""From records of `<f>.updates` to decoded updates and refusals.

The cheap checks run on the head as soon as it is there, before the payload is collected; digest,
decompression and decoding run off the event loop.
"""

from collections.abc import Callable
from time import monotonic

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.codec import Layout, decode, max_payload_size, payload_digest
from llmos_stream.config import Settings
from llmos_stream.core import Update, check_head
from llmos_stream.errors import Reason, Rejected
from llmos_stream.roles.offsets import SafeOffsets
from llmos_stream.runtime import Offload, run_all
from llmos_stream.types import Head, UpdateHead
from llmos_stream.wire import Assembler, Message, Outcome, Refusal


class Intake:
    """Reads updates for one aggregator. `version` tells the global version at the time of asking."""

    def __init__(
        self, reader: Reader, layout: Layout, settings: Settings, offload: Offload, version: Callable[[], int]
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._settings = settings
        self._offload = offload
        self._version = version
        wire = settings.wire
        self._assembler = Assembler(
            self._admit, max_pending_bytes=wire.pending_bytes, max_idle_seconds=wire.incomplete_seconds
        )
        self.offsets = SafeOffsets(self._assembler.low_water)
        self._read_before: dict[TopicPartition, int] = {}

    async def resume(self) -> None:
        """Tell that records up to the present end may have been read before.

        A restart begins at the oldest message that was not settled, which can lie in the middle of one
        that was: the rest of that one is no rubbish.
        """
        self._read_before = await self._reader.end_offsets()

    async def receive(self, timeout_seconds: float) -> list[Update | Refusal]:
        """What the next records amount to, in the order of the log; empty at the time-out."""
        outcomes: list[Outcome] = []
        for record in await self._reader.poll(timeout_seconds):
            outcomes += self._push(record)
        # After the records that were waiting: a process that was held up must not drop what has come meanwhile.
        outcomes += self._assembler.expire(monotonic())
        received: list[Update | Refusal] = []
        # As many at a time as there are threads: each decoded update is as large as the model.
        for start in range(0, len(outcomes), self._offload.workers):
            received += await run_all(*map(self._decode, outcomes[start : start + self._offload.workers]))
        return received

    def _push(self, record: Record) -> list[Outcome]:
        at = TopicPartition(record.topic, record.partition)
        outcomes = self._assembler.push(
            record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
        )
        self.offsets.read(at, record.offset)
        for outcome in outcomes:
            if isinstance(outcome, Message):
                self.offsets.hold(at, outcome.first_offset)
        return [outcome for outcome in outcomes if not self._is_old_tail(at, outcome)]

    def _is_old_tail(self, at: TopicPartition, outcome: Outcome) -> bool:
        return (
            isinstance(outcome, Refusal)
            and outcome.reason is Reason.MISSING_CHUNK
            and not outcome.head_bytes  # its beginning was never seen
            and outcome.offset < self._read_before.get(at, 0)
        )

    def _admit(self, head: Head) -> None:
        if not isinstance(head, UpdateHead):
            raise Rejected(Reason.UNSUPPORTED, "this topic carries updates")
        check_head(
            head,
            version=self._version(),
            layout_digest=self._layout.digest,
            staleness=self._settings.staleness,
            aggregation=self._settings.aggregation,
        )
        limit = max_payload_size(head.codec, self._layout.numel)
        if head.payload_size > limit:
            raise Rejected(Reason.TOO_LARGE, f"payload of {head.payload_size} bytes, at most {limit} needed")

    async def _decode(self, outcome: Outcome) -> Update | Refusal:
        if isinstance(outcome, Refusal):
            return outcome
        try:
            return await self._offload.run(decode_update, outcome, self._layout.numel)
        except Rejected as error:
            return Refusal(
                reason=error.reason,
                detail=error.detail,
                head=outcome.head,
                head_bytes=bytes(outcome.parts[0][:0]),
                key=outcome.key,
                partition=outcome.partition,
                offset=outcome.first_offset,
            )


def decode_update(message: Message, numel: int) -> Update:
    """Verify the payload's digest and decode it. Raises Rejected."""
    head = message.head
    if not isinstance(head, UpdateHead):
        raise Rejected(Reason.UNSUPPORTED, "this topic carries updates")
    if payload_digest(message.parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
    delta = decode(message.parts, head.codec, numel)
    return Update(head=head, partition=message.partition, offset=message.first_offset, delta=delta)

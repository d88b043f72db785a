"""From records of `<f>.updates` to decoded updates and refusals.

The cheap checks run on the head as soon as it is there, before the payload is collected. Collecting
(which may write to a file), hashing, decompression and decoding run off the event loop.
"""

import logging
from collections import deque
from collections.abc import AsyncGenerator, Mapping, Sequence

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.core import Rule, Update, check_head
from llmos_stream.core.fragments import fragment_of
from llmos_stream.errors import OffsetGone, Reason, Rejected
from llmos_stream.log.admission import check_payload_size, head_of, topic_assembler
from llmos_stream.log.federation import Federation
from llmos_stream.log.stream import MessageStream
from llmos_stream.roles.aggregator.decoding import Decoder
from llmos_stream.roles.aggregator.gate import Gate
from llmos_stream.roles.aggregator.offsets import SafeOffsets
from llmos_stream.storage.spool import room_in
from llmos_stream.telemetry.process_metrics import PENDING, PENDING_BYTES
from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.types import Contribution, UpdateHead
from llmos_stream.wire import Message, Outcome, Prelude, Refusal

logger = logging.getLogger(__name__)

_AFTER_A_PAUSE = (
    " while the federation was paused: what is under way then waits for topics.updates_retention_hours at most"
)


class Intake:
    """Reads the updates that clients send to one aggregator. See `UpdateSource` for the methods."""

    def __init__(
        self,
        federation: Federation,
        reader: Reader,
        layout: Layout,
        rule: Rule,
        decode_bytes: int,
        gate: Gate | None = None,
    ) -> None:
        self._reader = reader
        self._gate = gate
        self._topic = reader.partitions[0].topic
        self._fragments = layout.fragments(rule.aggregation.fragments)
        self._rule = rule
        self._staleness = rule.admitted
        self._offload = federation.offload
        self._clock = federation.clock
        self._version = 0
        wire = federation.wire
        # The other half is for the versions that are on their way out.
        pending = min(wire.pending_bytes, wire.memory_bytes + room_in(wire.spool_dir) // 2)
        shared = wire.model_copy(update={"pending_bytes": pending})
        self._assembler = topic_assembler(self._admit, shared, hashes=True)
        self._offsets = SafeOffsets(self._assembler.low_water)
        clips = rule.aggregation.clip_norm is not None or rule.aggregation.clip_multiple > 0
        self._decoder = Decoder(self._fragments, federation.offload, decode_bytes, clips=clips)
        self._stream = MessageStream(reader, self._assembler, clock=federation.clock, on_gap=self._overtaken)
        self._busy_seconds = 0.0
        self._before: dict[TopicPartition, int] = {}
        self._read_before: dict[TopicPartition, int] = {}
        self._resumed: set[TopicPartition] = set()  # those not heard since a pause

    async def resume(self, checkpoint: Mapping[str, object]) -> None:
        """Records up to the present end may have been read before: nothing else is remembered.

        A restart begins at the oldest message that was not settled, which can lie in the middle of one
        that was: the rest of that one is no rubbish.
        """
        self._read_before = await self._reader.end_offsets()

    async def receive(self, timeout_seconds: float, version: int) -> AsyncGenerator[Update | Refusal, None]:
        """Decode one update at a time, by all threads at once, and the next when that has been folded.

        Each may be as large as the model.
        """
        self._version = version
        waiting = await self._outcomes(timeout_seconds)
        while waiting:
            outcome = waiting.popleft()
            if isinstance(outcome, Refusal):
                yield outcome
                continue
            try:
                yield await self._decode(outcome)
            finally:
                # Folding may have walked through it once more. Giving back a part of a file may take a while.
                await self._offload.run(self._decoder.close, outcome)

    def version_size(self) -> None:
        return None

    def resumed_after_pause(self) -> None:
        self._resumed.update(self._reader.partitions)

    def span_of(self, partition: int, offset: int) -> TraceParent | None:
        return self._stream.span_of(partition, offset)

    def release(self, partition: int, offset: int) -> None:
        self._offsets.release(partition, offset)

    def committable_offsets(self, manifest: Sequence[Contribution] = ()) -> dict[TopicPartition, int]:
        return self._offsets.committable(manifest)

    def committed(self, offsets: Mapping[TopicPartition, int], manifest: Sequence[Contribution] = ()) -> None:
        self._offsets.committed(offsets, manifest)

    async def lag(self) -> int:
        return await self._reader.known_lag()

    def take_busy_seconds(self) -> float:
        taken = self._busy_seconds + self._stream.busy_seconds
        self._busy_seconds = self._stream.busy_seconds = 0.0
        return taken

    def checkpoint(self, version: int) -> dict[str, object]:
        return {}

    async def _outcomes(self, timeout_seconds: float) -> deque[Outcome]:
        found = await self._stream.batch(timeout_seconds, self._offload)
        outcomes = deque(outcome for outcome in found if not self._is_old_tail(outcome))
        PENDING.set(self._assembler.pending_messages)
        PENDING_BYTES.set(self._assembler.pending_bytes)
        for at, position in self._stream.positions.items():
            if position > self._before.get(at, 0):
                self._resumed.discard(at)
                self._before[at] = position
                self._offsets.read(at, position - 1)
        for outcome in outcomes:  # none may be committed past before somebody has settled it
            offset = outcome.first_offset if isinstance(outcome, Message) else outcome.offset
            self._offsets.hold(outcome.partition, offset)
        return outcomes

    def _overtaken(self, error: OffsetGone, deleted: Mapping[TopicPartition, int]) -> None:
        logger.error(
            "updates were deleted by retention before they were read (%s)%s; going on with the oldest left",
            error,
            _AFTER_A_PAUSE if self._resumed.intersection(deleted) else "",
        )

    def _is_old_tail(self, outcome: Outcome) -> bool:
        return (
            isinstance(outcome, Refusal)
            and outcome.reason is Reason.MISSING_CHUNK
            and not outcome.head_bytes  # its beginning was never seen
            and outcome.offset < self._read_before.get(TopicPartition(self._topic, outcome.partition), 0)
        )

    def _admit(self, prelude: Prelude) -> None:
        head = head_of(UpdateHead, prelude)
        if prelude.key != head.client_id.encode():
            raise Rejected(Reason.WRONG_KEY, f"an update of client {head.client_id} under another key than that")
        if self._gate is not None:
            self._gate.check_head(head)
        fragment = fragment_of(self._fragments, head.range)
        check_head(
            head,
            version=self._version,
            layout_digest=fragment.digest,
            staleness=self._staleness,
            aggregation=self._rule.aggregation,
        )
        check_payload_size(head, fragment.parameters, fragment.buffer_elements)

    async def _decode(self, message: Message) -> Update | Refusal:
        begun = self._clock.monotonic()
        try:
            if self._gate is not None:
                self._gate.check_room(head_of(UpdateHead, message))
            return await self._decoder.decode(message)
        except Rejected as error:
            return Refusal(
                reason=error.reason,
                detail=error.detail,
                head=message.head,
                head_bytes=b"",
                key=message.key,
                partition=message.partition,
                offset=message.first_offset,
            )
        finally:
            self._busy_seconds += self._clock.monotonic() - begun

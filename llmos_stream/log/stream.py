"""Reading a topic: the records in its order, and the messages and events that they make up.

What nobody of this federation wrote is counted and passed over here, so that no record ends a reader.
"""

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import NamedTuple

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.errors import BrokerUnavailable, OffsetGone, Reason, Rejected, TopicMissing
from llmos_stream.log.record_tracing import SpanContexts
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload
from llmos_stream.runtime.logs import Sparing
from llmos_stream.telemetry.process_metrics import FOREIGN
from llmos_stream.telemetry.tracing import TraceParent
from llmos_stream.types import Event
from llmos_stream.wire import Assembler, Message, Outcome, Refusal, load_event

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())

QUIET_SECONDS = 10.0
"""Who has read nothing for this long asks the broker whether it is there."""
_ANSWER_SECONDS = 3.0
_AT_ONCE = 500
_POLL_SECONDS = 1.0

_CUT = "the topic was deleted and made anew, or its brokers have lost records; start this again"

OnForeign = Callable[[str, int, str], object]
"""Told of a record that no writer of this federation wrote: its topic, its offset, and why that is known."""
OnGap = Callable[[OffsetGone, Mapping[TopicPartition, int]], object]
"""Told that retention deleted what was to be read next, and where reading goes on instead: with the oldest left."""


def go_on(what: str) -> OnGap:
    """Say what retention deleted before it was read, and go on with what is left."""

    def say(error: OffsetGone, _: object) -> None:
        logger.warning("retention deleted %s before they were read (%s); going on with the oldest left", what, error)

    return say


def value_of(record: Record) -> bytes:
    """What a record holds; a record without a value holds nothing."""
    return record.value or b""


def foreign(topic: str, offset: int, why: str) -> None:
    """Count and show what is passed over because no writer of this federation wrote it."""
    FOREIGN.labels(topic.rpartition(".")[2]).inc()
    logger.warning("passed over what is at offset %d of %s: %s", offset, topic, why, extra={"about": topic})


def event_key(entry: Event) -> bytes:
    """The key of an event's record: its client, or the role."""
    client = entry.data.get("client_id")
    return (client if isinstance(client, str) else entry.role).encode("utf-8", "surrogatepass")


async def _skip_deleted(reader: Reader) -> dict[TopicPartition, int]:
    """After OffsetGone: go on with the oldest record left where the next one is not there, elsewhere as before.

    Returns the partitions that lost something, and their new positions.
    """
    before = {at: await reader.position(at) for at in reader.partitions}
    ends = await reader.end_offsets()
    await reader.seek_to_beginning()
    overtaken = {}
    for at, position in before.items():
        if not (oldest := await reader.position(at)) <= position <= ends[at]:
            overtaken[at] = oldest
        else:
            reader.seek(at, position)
    return overtaken


class RecordStream:
    """Follows a topic through a reader that nobody else uses.

    on_gap: None leaves it to the caller to seek where retention was quicker: `poll` raises OffsetGone then.
    """

    def __init__(self, reader: Reader, *, clock: Clock = SYSTEM_CLOCK, on_gap: OnGap | None = None) -> None:
        self._reader = reader
        self._clock = clock
        self._on_gap = on_gap
        self._heard = clock.monotonic()
        self._read: dict[TopicPartition, int] = {}  # by partition, the offset after the last record that was read
        self.positions: dict[TopicPartition, int] = {}
        """By partition, the offset after the last record that was handed on."""

    async def poll(self, seconds: float, max_records: int = _AT_ONCE) -> list[Record]:
        """What comes within this time, as soon as there is something.

        Raises:
            OffsetGone: retention deleted what was to be read next, and there is no `on_gap`.
            TopicMissing: the topic was deleted, or another has its name now: one that ends before what was read.
            BrokerUnavailable: nothing has come for long, and nobody answers.
        """
        try:
            records = await self._reader.poll(seconds, max_records)
        except OffsetGone as error:
            await self._check_ends()
            if self._on_gap is None:
                raise
            lost = await _skip_deleted(self._reader)
            self._lost(tuple(lost))
            self._on_gap(error, lost)
            return []
        if records:
            self._heard = self._clock.monotonic()
            self._read.update({TopicPartition(one.topic, one.partition): one.offset + 1 for one in records})
        elif self._clock.monotonic() - self._heard > QUIET_SECONDS:
            await self._ask()
            self._heard = self._clock.monotonic()
        return records

    async def at_end(self) -> bool:
        """Whether everything there is now has been read. Asks the broker."""
        return await self._reader.lag() == 0

    def seek(self, at: TopicPartition, offset: int) -> None:
        """Read on from `offset`."""
        self._reader.seek(at, offset)

    async def seek_to_beginning(self) -> None:
        """Read on from the oldest records left."""
        self._lost(self._reader.partitions)
        await self._reader.seek_to_beginning()

    def _lost(self, partitions: Sequence[TopicPartition]) -> None:
        """Forget what was begun there."""

    async def _check_ends(self) -> None:
        for at, end in (await self._reader.end_offsets()).items():
            if end < (read := self._read.get(at, 0)):
                raise TopicMissing(f"{at.topic}[{at.partition}] was read up to offset {read} and ends at {end}: {_CUT}")

    async def _ask(self) -> None:
        # Polls of a broker that is gone find nothing, for ever.
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                await self._reader.lag()
        except TimeoutError:
            raise BrokerUnavailable(f"the broker has been silent for {QUIET_SECONDS:g} s and does not answer") from None


class PlacedEvent(NamedTuple):
    """An event, and where its record is."""

    topic: str
    offset: int
    event: Event


class EventStream(RecordStream):
    """Follows `<f>.events`, `<f>.evaluations` or both."""

    def __init__(
        self,
        reader: Reader,
        *,
        clock: Clock = SYSTEM_CLOCK,
        on_gap: OnGap | None = None,
        on_foreign: OnForeign = foreign,
    ) -> None:
        super().__init__(reader, clock=clock, on_gap=on_gap)
        self._on_foreign = on_foreign

    async def events(self, seconds: float) -> list[PlacedEvent]:
        """Those that come within this time, as soon as there are some. Raises as `poll` does.

        What names another client than its record's key is foreign. So is what has no key, in old logs too: every
        writer of this package has keyed its events, since the first one.
        """
        found = []
        for record in await self.poll(seconds):
            self.positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
            try:
                event = load_event(value_of(record))
            except Rejected as error:
                self._on_foreign(record.topic, record.offset, error.detail)
                continue
            if record.key != event_key(event):
                self._on_foreign(record.topic, record.offset, "its key is not that of who it tells of")
            else:
                found.append(PlacedEvent(record.topic, record.offset, event))
        return found


class MessageStream(RecordStream):
    """Follows a topic of messages. `assembler` puts them together, and refuses those that are not wanted.

    What a reader takes at once may hold many messages, each as large as a model: `next` assembles no further than
    to the message that it returns. `on_refusal` is told of what could not become a message before that is counted as
    foreign; what it raises comes out of `next`.
    """

    def __init__(
        self,
        reader: Reader,
        assembler: Assembler,
        *,
        clock: Clock = SYSTEM_CLOCK,
        on_gap: OnGap | None = None,
        on_refusal: Callable[[Refusal], object] | None = None,
    ) -> None:
        super().__init__(reader, clock=clock, on_gap=on_gap)
        self._assembler = assembler
        self._topic = reader.partitions[0].topic
        self._on_refusal = on_refusal
        self._records: deque[Record] = deque()  # read, and not looked at
        self._outcomes: deque[Outcome] = deque()
        self._spans = SpanContexts()
        self._log_time, self._silent_seconds = 0.0, 0.0
        self.busy_seconds = 0.0
        """How long `batch` has assembled."""

    async def next(self, seconds: float) -> Message | None:
        """The next message; None where what came within this time makes none whole. Raises as `poll` does."""
        if not (self._outcomes or self._records):
            await self._fetch(seconds)
        while self._outcomes or self._records:
            while self._outcomes:
                outcome = self._outcomes.popleft()
                if isinstance(outcome, Message):
                    return outcome
                self._refused(outcome)
            if self._records:
                self._outcomes += self._push(self._records.popleft())
        return None

    async def awaited(self, at: TopicPartition, timeout_seconds: float) -> Message | None:
        """The next message; None once nothing of it has come for `timeout_seconds`. Raises as `poll` does."""
        before, deadline = self.positions.get(at), self._clock.monotonic() + timeout_seconds
        while (left := deadline - self._clock.monotonic()) > 0:
            message = await self.next(min(left, _POLL_SECONDS))  # or nobody notices that the broker is gone
            if message is not None:
                return message
            if self.positions.get(at) != before:  # a slow link may take its time
                before, deadline = self.positions.get(at), self._clock.monotonic() + timeout_seconds
        return None

    async def to_end(self) -> AsyncIterator[Message]:
        """Every message up to where the topic ends now. Raises as `poll` does."""
        ends = await self._reader.end_offsets()
        while (
            self._records or self._outcomes or any([await self._reader.position(at) < end for at, end in ends.items()])
        ):
            if (message := await self.next(_POLL_SECONDS)) is not None:
                yield message

    async def position(self, at: TopicPartition) -> int:
        """The offset in a partition that is looked at next."""
        waiting = (record.offset for record in self._records if record.partition == at.partition)
        return next(waiting, await self._reader.position(at))

    async def batch(self, seconds: float, offload: Offload) -> deque[Outcome]:
        """What the records amount to that come within this time, assembled off the event loop, at most a fetch at once.

        Messages that were idle for too long by the log's own time are among them, as refusals. Raises as `poll` does.
        """
        await self._fetch(seconds)
        if not self._records and not self._assembler.pending_messages:
            return deque()
        return await offload.run(self._assemble)

    async def at_end(self) -> bool:
        """Whether everything there is now has been read, and looked at too. Asks the broker."""
        return not (self._records or self._outcomes) and await super().at_end()

    def span_of(self, partition: int, first_offset: int) -> TraceParent | None:
        """The span that the message which begins there was sent from, where it is known. Asked for once."""
        return self._spans.take(partition, first_offset)

    def seek(self, at: TopicPartition, offset: int) -> None:
        """Read on from `offset`; what was begun in the partition is forgotten."""
        self._lost([at])
        self._reader.seek(at, offset)

    def _lost(self, partitions: Sequence[TopicPartition]) -> None:
        self._records = deque(
            record for record in self._records if TopicPartition(record.topic, record.partition) not in partitions
        )
        for at in partitions:
            self._assembler.forget(at.partition)

    async def _fetch(self, seconds: float) -> None:
        begun = self._clock.monotonic()
        records = await self.poll(seconds)
        self._spans.note(records)
        self._records += records
        if records:
            self._log_time, self._silent_seconds = max(record.timestamp_ms / 1000 for record in records), 0.0
        else:
            self._silent_seconds += self._clock.monotonic() - begun

    def _assemble(self) -> deque[Outcome]:
        begun = self._clock.monotonic()
        found: deque[Outcome] = deque()
        while self._records:
            found += self._push(self._records.popleft())
        # By the log's own time, and that spent listening in vain since then: a reader that was held up, or paused,
        # must not take what waits for what is missing.
        found += self._assembler.expire(self._log_time + self._silent_seconds)
        self.busy_seconds += self._clock.monotonic() - begun
        return found

    def _refused(self, refusal: Refusal) -> None:
        if self._on_refusal is not None:
            self._on_refusal(refusal)
        # What begins before this reader did, or before what retention left, was written by no stranger.
        if refusal.reason is not Reason.MISSING_CHUNK:
            foreign(self._topic, refusal.offset, refusal.detail)

    def _push(self, record: Record) -> list[Outcome]:
        self.positions[TopicPartition(record.topic, record.partition)] = record.offset + 1
        return self._assembler.push(
            value_of(record),
            key=record.key,
            partition=record.partition,
            offset=record.offset,
            now=record.timestamp_ms / 1000,
        )

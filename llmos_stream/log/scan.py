"""Reading what the log holds now, from the oldest record kept to the end."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.stream import OnGap, RecordStream, foreign, value_of
from llmos_stream.types import SnapshotHead, VersionHead
from llmos_stream.wire import Assembler, Prelude, Refusal, read_chunk

_POLL_SECONDS = 1.0
_WORTH_A_SEEK = 16 << 20
"""Bytes. A reader fetches some megabytes ahead: only a longer payload is passed over sooner than read."""

H = TypeVar("H", VersionHead, SnapshotHead)


@dataclass(frozen=True, slots=True)
class LoggedHead(Generic[H]):
    """A message's head, and where the message begins."""

    head: H
    partition: int
    offset: int


async def read_heads(reader: Reader, kind: type[H]) -> AsyncIterator[LoggedHead[H]]:
    """The heads of all messages of a kind, from the reader's position to the present end, in order."""
    heads = HeadStream(reader, kind)
    ends = await reader.end_offsets()
    while any([await reader.position(at) < end for at, end in ends.items()]):
        for head in await heads.heads(_POLL_SECONDS):
            yield head


class HeadStream(RecordStream, Generic[H]):
    """Follows the messages of a kind through a reader that nobody else uses.

    Payloads are not kept, and long ones not even read. A message whose beginning retention has deleted is
    passed over.
    """

    def __init__(self, reader: Reader, kind: type[H], *, on_gap: OnGap | None = None) -> None:
        super().__init__(reader, on_gap=on_gap)
        self._kind: type[H] = kind
        self._heads: list[H] = []
        # A message is settled as soon as its head is there, so no more than heads are ever held, whatever the limit.
        self._assembler = Assembler(self._refuse, max_pending_bytes=1 << 62)

    async def heads(self, seconds: float) -> list[LoggedHead[H]]:
        """Those whose heads came within this time, as soon as there are some. Raises as `poll` does."""
        found: list[LoggedHead[H]] = []
        passed: dict[TopicPartition, int] = {}
        records = await self.poll(seconds)
        lag = await self._reader.known_lag() if records else 0
        for record in records:
            at = TopicPartition(record.topic, record.partition)
            if record.offset < passed.get(at, 0):
                continue
            for outcome in self._assembler.push(
                value_of(record), key=record.key, partition=record.partition, offset=record.offset, now=0.0
            ):
                if not isinstance(outcome, Refusal):
                    continue
                if self._heads:
                    found.append(LoggedHead(self._heads.pop(), outcome.partition, outcome.offset))
                elif outcome.reason is not Reason.MISSING_CHUNK:
                    foreign(record.topic, outcome.offset, outcome.detail)
            # What claims to go on for longer than the log does is nobody's message: the next may lie right behind it.
            rest = _long_rest(record) if self._assembler.pending_messages == 0 else 0
            if 0 < rest <= await self._reader.position(at) + lag - record.offset:
                passed[at] = record.offset + rest
        for at, offset in passed.items():
            if await self._reader.position(at) < offset:
                self._reader.seek(at, offset)
        return found

    def _lost(self, partitions: Sequence[TopicPartition]) -> None:
        for at in partitions:
            self._assembler.forget(at.partition)

    def _refuse(self, prelude: Prelude) -> None:
        head = prelude.head
        if isinstance(head, self._kind):
            self._heads.append(head)
        raise Rejected(Reason.UNSUPPORTED, "its payload is not asked for")


def _long_rest(record: Record) -> int:
    """How many records a message begun here goes on for, itself included; 0 where that is not worth a seek.

    Messages of these topics are written one at a time, so nothing else begins before the last of them.
    """
    try:
        chunk = read_chunk(value_of(record))
    except Rejected:
        return 0
    return chunk.count if chunk.index == 0 and chunk.count * len(chunk.body) >= _WORTH_A_SEEK else 0

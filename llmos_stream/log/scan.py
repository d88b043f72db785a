"""Reading what the log holds now, from the oldest record kept to the end."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from time import monotonic
from typing import Generic, TypeVar

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.versions import version_assembler, version_head
from llmos_stream.types import Part, SnapshotHead, VersionHead
from llmos_stream.wire import Assembler, Message, Prelude, Refusal, read_chunk

_POLL_SECONDS = 1.0
_WORTH_A_SEEK = 16 << 20
"""Bytes. A reader fetches some megabytes ahead: only a longer payload is passed over sooner than read."""

H = TypeVar("H", VersionHead, SnapshotHead)


@dataclass(frozen=True, slots=True)
class LoggedVersion:
    """A version as it lies in the log, its payload not decoded."""

    head: VersionHead
    parts: Iterable[Part]
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class LoggedHead(Generic[H]):
    """A message's head, and where the message begins."""

    head: H
    partition: int
    offset: int


async def read_versions(reader: Reader, wire: WireSettings) -> AsyncIterator[LoggedVersion]:
    """Every version from the reader's position to the present end, in order.

    One whose beginning retention has deleted is passed over.
    """
    assembler = version_assembler(wire)
    ends = await reader.end_offsets()
    while any([await reader.position(at) < end for at, end in ends.items()]):
        for record in await _some(reader):
            for outcome in assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            ):
                if isinstance(outcome, Message):
                    yield LoggedVersion(version_head(outcome), outcome.parts, outcome.partition, outcome.first_offset)


async def _some(reader: Reader) -> list[Record]:
    """What comes within a while. Raises BrokerUnavailable when nothing does because nobody answers."""
    if not (records := await reader.poll(_POLL_SECONDS)):
        await reader.lag()
    return records


async def read_heads(reader: Reader, kind: type[H]) -> AsyncIterator[LoggedHead[H]]:
    """The heads of all messages of a kind, from the reader's position to the present end, in order."""
    heads = HeadReader(reader, kind)
    ends = await reader.end_offsets()
    while any([await reader.position(at) < end for at, end in ends.items()]):
        found = await heads.poll(_POLL_SECONDS)
        if not found:
            await reader.lag()  # raises when nothing comes because nobody answers
        for head in found:
            yield head


class HeadReader(Generic[H]):
    """Follows the messages of a kind through a reader that nobody else uses.

    Payloads are not kept, and long ones not even read. A message whose beginning retention has deleted is
    passed over.
    """

    def __init__(self, reader: Reader, kind: type[H]) -> None:
        self._reader = reader
        self._kind: type[H] = kind
        self._heads: list[H] = []
        # A message is settled as soon as its head is there, so no more than heads are ever held, whatever the limit.
        self._assembler = Assembler(self._refuse, max_pending_bytes=1 << 62)

    async def poll(self, timeout_seconds: float) -> list[LoggedHead[H]]:
        """Those whose heads came within this time; as soon as there are some. Raises OffsetGone as a reader does."""
        found: list[LoggedHead[H]] = []
        passed: dict[TopicPartition, int] = {}
        for record in await self._reader.poll(timeout_seconds):
            at = TopicPartition(record.topic, record.partition)
            if record.offset < passed.get(at, 0):
                continue
            for outcome in self._assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            ):
                if self._heads and isinstance(outcome, Refusal):
                    found.append(LoggedHead(self._heads.pop(), outcome.partition, outcome.offset))
            if self._assembler.pending_messages == 0 and (rest := _long_rest(record)):
                passed[at] = record.offset + rest
                self._reader.seek(at, passed[at])
        return found

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
        chunk = read_chunk(record.value or b"")
    except Rejected:
        return 0
    return chunk.count if chunk.index == 0 and chunk.count * len(chunk.body) >= _WORTH_A_SEEK else 0

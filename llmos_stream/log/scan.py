"""Reading what the log holds now, from the oldest record kept to the end."""

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.stream import MessageStream, OnGap, value_of
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


class HeadStream(MessageStream, Generic[H]):
    """Follows the messages of a kind by their heads.

    Payloads are not kept, and long ones not even read. A message whose beginning retention has deleted is
    passed over.
    """

    def __init__(self, reader: Reader, kind: type[H], *, on_gap: OnGap | None = None) -> None:
        # A message is settled as soon as its head is there, so no more than heads are ever held, whatever the limit.
        super().__init__(reader, Assembler(self._refuse, max_pending_bytes=1 << 62), on_gap=on_gap)
        self._kind: type[H] = kind
        self._head: H | None = None
        self._found: list[LoggedHead[H]] = []

    async def heads(self, seconds: float) -> list[LoggedHead[H]]:
        """Those whose heads came within this time, as soon as there are some. Raises as `poll` does."""
        await self._fetch(seconds)
        lag = await self._reader.known_lag() if self._records else 0
        while self._records:
            record = self._records.popleft()
            for outcome in self._push(record):
                if isinstance(outcome, Refusal):
                    self._refused(outcome)
            # What claims to go on for longer than the log does is nobody's message: the next may lie right behind it.
            rest = _long_rest(record) if self._assembler.pending_messages == 0 else 0
            at = TopicPartition(record.topic, record.partition)
            position = await self._reader.position(at)
            if 0 < rest <= position + lag - record.offset:
                if position < record.offset + rest:
                    self.seek(at, record.offset + rest)
                self._records = deque(one for one in self._records if one.offset >= record.offset + rest)
        found, self._found = self._found, []
        return found

    def _refused(self, refusal: Refusal) -> None:
        if self._head is None:
            super()._refused(refusal)
        else:
            self._found.append(LoggedHead(self._head, refusal.partition, refusal.offset))
            self._head = None

    def _refuse(self, prelude: Prelude) -> None:
        head = prelude.head
        if isinstance(head, self._kind):
            self._head = head
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

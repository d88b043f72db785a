"""Going about in a topic of messages by offset: from chunk to chunk, to where a message begins, and to its head.

Payloads are passed over. A record that is no chunk of a numbered message is passed over too, whatever it claims:
nothing here raises for what a record holds.
"""

from collections import deque
from dataclasses import dataclass

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.stream import value_of
from llmos_stream.types import Part
from llmos_stream.wire import Chunk, Prelude, prelude_needs, read_chunk, unpack_prelude

_SHORTEST_POLL_SECONDS = 0.01
_LONGEST_POLL_SECONDS = 1.0
_MAX_NUMBER = 2**63 - 1
_MAX_DIGITS = len(str(_MAX_NUMBER))


@dataclass(frozen=True, slots=True)
class Piece:
    """A record that is a chunk, and the number that its key says."""

    number: int
    offset: int
    chunk: Chunk

    def is_of(self, other: "Piece") -> bool:
        """Whether both are chunks of one message."""
        return self.chunk.message_id == other.chunk.message_id


class Cursor:
    """Reads chunks of one partition through a reader that nobody else uses.

    What a fetch brought is kept until the next one: moving about in it costs nothing.
    """

    def __init__(self, reader: Reader, at: TopicPartition) -> None:
        self.at = at
        self._reader = reader
        self.skipped = 0
        """Records that are no chunks, each counted when it is come upon first on the way to the end."""
        self._counted = -1
        self._ahead: deque[Record] = deque()
        self._from = _MAX_NUMBER  # of what lies between here and the reader's position, all is in `_ahead`

    async def bounds(self) -> tuple[int, int]:
        """The oldest offset kept, and the end."""
        end = (await self._reader.end_offsets())[self.at]
        self._ahead.clear()
        self._from = _MAX_NUMBER
        await self._reader.seek_to_beginning(self.at)
        return await self._reader.position(self.at), end

    async def first(self, offset: int, end: int) -> Piece | None:
        """The first chunk from `offset` on, before `end`. Raises BrokerUnavailable when nobody answers."""
        while (record := await self._record(offset, end)) is not None:
            if (piece := _piece(record)) is not None:
                return piece
            if record.offset > self._counted:
                self._counted, self.skipped = record.offset, self.skipped + 1
            offset = record.offset + 1
        return None

    async def beginning(self, offset: int, end: int) -> Piece | None:
        """The first chunk from `offset` on that a message begins with, before `end`."""
        while (piece := await self.first(offset, end)) is not None and piece.chunk.index:
            offset = piece.offset + 1
        return piece

    async def back_to_beginning(self, piece: Piece, oldest: int) -> Piece | None:
        """The chunk that the message of `piece` begins with; None where the log does not hold it."""
        while piece.chunk.index:
            # Chunks follow one another. Another writer's records may lie between them, so that this may fall short.
            guess = piece.offset - piece.chunk.index
            earlier = None if guess < oldest else await self.first(guess, piece.offset)
            if earlier is None or not earlier.is_of(piece) or earlier.chunk.index >= piece.chunk.index:
                return None
            piece = earlier
        return piece

    async def prelude(self, piece: Piece, end: int) -> Prelude | None:
        """What the message that begins with `piece` opens with, its head parsed; None where it cannot be read."""
        data: Part = piece.chunk.body
        last = piece
        try:
            while (prelude := unpack_prelude(data)) is None:
                parts, missing = [bytes(data)], prelude_needs(data) - len(data)
                while missing > 0:
                    following = await self.first(last.offset + 1, end)
                    if following is None or not following.is_of(piece) or following.chunk.index != last.chunk.index + 1:
                        return None
                    last = following
                    parts.append(bytes(last.chunk.body))
                    missing -= len(parts[-1])
                data = b"".join(parts)
        except Rejected:
            return None
        return prelude

    async def _record(self, offset: int, end: int) -> Record | None:
        """The first record from `offset` on, before `end`."""
        if offset >= end:
            return None
        if not self._from <= offset <= await self._reader.position(self.at):
            self._reader.seek(self.at, offset)
            self._ahead.clear()
        self._from = offset
        while self._ahead and self._ahead[0].offset < offset:
            self._ahead.popleft()
        seconds = _SHORTEST_POLL_SECONDS  # a transaction's end is passed without a record
        while not self._ahead and await self._reader.position(self.at) < end:
            self._ahead.extend(await self._fetch(seconds))
            seconds = min(2 * seconds, _LONGEST_POLL_SECONDS)
        return self._ahead[0] if self._ahead and self._ahead[0].offset < end else None

    async def _fetch(self, seconds: float) -> list[Record]:
        try:
            records = await self._reader.poll(seconds)
        except OffsetGone:
            position = await self._reader.position(self.at)
            await self._reader.seek_to_beginning(self.at)
            if await self._reader.position(self.at) <= position:
                raise
            return []
        if not records and seconds == _LONGEST_POLL_SECONDS:
            await self._reader.lag()  # raises when nothing comes because nobody answers
        return [record for record in records if record.partition == self.at.partition]


def _piece(record: Record) -> Piece | None:
    """None for a record that nobody of this federation wrote."""
    key = record.key or b""
    try:
        # Only as it is written: `int` takes signs, blanks, underscores and other scripts' digits too.
        number = int(key) if len(key) <= _MAX_DIGITS else -1
        if key != b"%d" % number or not 0 <= number <= _MAX_NUMBER:
            return None
        return Piece(number, record.offset, read_chunk(value_of(record)))
    except (Rejected, ValueError):
        return None

"""Which version lies where in `<f>.models`, by the heads alone: payloads are never assembled, and long ones not read.

A record there bears its version's number as key, and the numbers rise with the offsets, so that halving finds a
version in a few reads. A version's head is in its first record, so that going through the log costs about one record
a version. What others wrote there is passed over.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from llmos_stream.broker import Broker, TopicPartition
from llmos_stream.errors import OffsetGone, Reason, Rejected
from llmos_stream.log.cursor import Cursor, Piece
from llmos_stream.log.standing import LocatedVersion, Standing, Succession
from llmos_stream.types import VersionHead, VersionKind
from llmos_stream.wire.control import Pointer

logger = logging.getLogger(__name__)

_UNSURE_KEPT = 1024
_OTHERS_PASSED = 64
_FETCH_BYTES = 964 * 1024
"""One record of a version (`wire.chunk_bytes`), and the end of the transaction before it. Kafka gives no less than a
whole record, and sends in vain what is begun of the next one."""


@asynccontextmanager
async def version_index(broker: Broker, topic: str) -> AsyncIterator["VersionIndex"]:
    """The versions that `topic`, a `<f>.models`, holds now. Raises TopicMissing."""
    async with broker.reader([topic], start="earliest", fetch_bytes=_FETCH_BYTES) as reader:
        cursor = Cursor(reader, TopicPartition(topic, 0))
        yield VersionIndex(cursor, *await cursor.bounds())


class VersionIndex:
    """Looks versions up between two offsets, the oldest kept and the end: see `version_index`.

    All methods raise BrokerUnavailable when nobody answers.
    """

    def __init__(self, cursor: Cursor, oldest: int, end: int) -> None:
        self._cursor = cursor
        self._oldest = oldest
        self._end = end

    async def find(self, number: int) -> LocatedVersion | None:
        """The version of this number; None where the log does not hold it from its beginning."""
        found = await self._halve(number)
        if found is None and not await self._spans(number):
            return None
        if found is not None and await self._has_its_place(found):
            return found
        # A stranger's key has led astray.
        walked = self.walk(to=number)
        return await anext((version async for version, _ in walked if version.head.number == number), None)

    async def walk(self, to: int | None = None) -> AsyncIterator[tuple[LocatedVersion, Pointer | None]]:
        """The versions up to a number, that one included, or all; in the order of the log.

        With each comes where to find its weights: None for a delta whose full version the log does not hold.
        """
        standing = Standing()
        async for version in self._run():
            if to is not None and version.head.number > to:
                return
            yield version, standing.pointer(version.head, version.partition, version.offset)

    async def oldest(self) -> LocatedVersion | None:
        """The oldest version that is there from its beginning; None in an empty log."""
        return await anext(self._run(), None)

    async def newest(self) -> LocatedVersion | None:
        """The newest version; None in an empty log."""
        last: LocatedVersion | None = None
        later: deque[LocatedVersion] = deque(maxlen=_UNSURE_KEPT)
        here = await self._before(self._end, 1, checked=True)
        while here is not None:
            if (known := next((version for version in later if version.continues(here)), None)) is not None:
                return known
            last = last or here
            later.append(here)
            here = await self._before(here.offset, here.records + 1, checked=True)
        return last

    async def at(self, pointer: Pointer) -> LocatedVersion | None:
        """The version that `pointer` names; None where it does not begin there.

        Raises OffsetGone when retention has deleted what lay there.
        """
        self._require(pointer)
        piece = await self._cursor.first(pointer.offset, min(pointer.offset + 1, self._end))
        found = await self._version(piece)
        return found if found is not None and found.head.number == pointer.version else None

    async def pointer(self, number: int | None = None) -> Pointer | None:
        """Where to find the weights of a version, by default the newest; None where the log does not hold them."""
        found = await self.newest() if number is None else await self.find(number)
        return None if found is None else await self.stands_on(found)

    async def stands_on(self, version: LocatedVersion) -> Pointer | None:
        """Where to find the weights of a version; None where the log does not hold all that it stands on."""
        here = version
        while here.head.kind is not VersionKind.FULL:
            before = await self._before(here.offset, here.records + 1)
            if before is None:
                return None
            if before.head.number != here.head.parent:  # a stranger's lies between
                walked = self.walk(to=version.head.number)
                return await anext((at async for found, at in walked if found.offset == version.offset), None)
            here = before
        full = Pointer(here.head.number, here.partition, here.offset)
        return full if here is version else Pointer(version.head.number, version.partition, version.offset, full)

    async def chain(self, pointer: Pointer) -> list[LocatedVersion]:
        """The version that `pointer` names and all that it stands on, the full one first, each on the one before.

        The full one, too, must follow from what is before it in the log.

        Raises:
            OffsetGone: retention has deleted what lay there.
            Rejected: there is no such version, or it does not follow from those before it.
        """
        self._require(pointer.beginning)
        here = await self.at(pointer)
        if here is None:
            raise Rejected(Reason.MALFORMED, f"version {pointer.version} does not begin at offset {pointer.offset}")
        chain = [here]
        while here.head.kind is not VersionKind.FULL:
            here = await self._parent(here)
            chain.append(here)
        await self._parent(here, first=True)
        return chain[::-1]

    def _require(self, pointer: Pointer) -> None:
        if pointer.offset < self._oldest:
            raise OffsetGone(f"version {pointer.version} at offset {pointer.offset}: the oldest one is {self._oldest}")

    async def _parent(self, version: LocatedVersion, *, first: bool = False) -> LocatedVersion:
        """The version that this one follows; itself where nothing is before it, and it may be the `first`.

        What others wrote between the two is passed over, as far as it is not too much.
        """
        here, others = await self._before(version.offset, version.records + 1, checked=True), 0
        if first and here is None:
            return version
        while here is not None and others < _OTHERS_PASSED:
            if version.follows(here):
                return here
            here, others = await self._before(here.offset, here.records + 1, checked=True), others + 1
        raise Rejected(Reason.MALFORMED, f"version {version.head.number} does not follow from those before it")

    async def _run(self) -> AsyncIterator[LocatedVersion]:
        """The versions of the run."""
        succession, skipped = Succession(), self._cursor.skipped
        async for found in self._heads():
            for version in succession.take(found):
                yield version
        for version in succession.rest():
            yield version
        if foreign := succession.foreign + self._cursor.skipped - skipped:
            logger.warning("passed over what others wrote in %s, in %d places", self._cursor.at.topic, foreign)

    async def _heads(self) -> AsyncIterator[LocatedVersion]:
        """All that can be read as a version."""
        offset = self._oldest
        passed: tuple[Piece, LocatedVersion] | None = None  # the version whose payload was passed over to get here
        while True:
            piece = await self._cursor.beginning(offset, self._end)
            found = await self._version(piece)
            if passed is not None and not (found is not None and found.continues(passed[1])):
                begun, passed = passed[0], None
                if not await self._ends_as_it_says(begun):
                    offset = begun.offset + 1  # it claimed more records than it has, and the next versions lie there
                    continue
            if piece is None:
                return
            if found is None:
                offset, passed = piece.offset + 1, None
                continue
            yield found
            offset, passed = piece.offset + piece.chunk.count, (piece, found)

    async def _ends_as_it_says(self, piece: Piece) -> bool:
        """Whether the last record of a message lies where one of its records says, or a little later."""
        if piece.chunk.index == piece.chunk.count - 1:
            return True
        after = piece.offset - piece.chunk.index + piece.chunk.count
        last = await self._cursor.first(after - 1, self._end)
        return last is not None and last.is_of(piece) and last.chunk.index > piece.chunk.index

    async def _halve(self, number: int) -> LocatedVersion | None:
        low, high = self._oldest, self._end
        while low < high:
            middle = (low + high) // 2
            piece = await self._cursor.first(middle, high)
            if piece is None or piece.number > number:
                high = middle
            elif piece.number < number:
                low = piece.offset + 1
            else:
                return await self._version(await self._cursor.back_to_beginning(piece, self._oldest))
        return None

    async def _spans(self, number: int) -> bool:
        """Whether the log holds versions on both sides of `number`, or of this number."""
        oldest, newest = await self.oldest(), await self.newest()
        return oldest is not None and newest is not None and oldest.head.number <= number <= newest.head.number

    async def _has_its_place(self, found: LocatedVersion) -> bool:
        """Whether a version is there that `found` continues, or that continues it; or no other at all."""
        after = await self._version(await self._cursor.beginning(found.offset + found.records, self._end))
        if after is not None and after.continues(found):
            return True
        before = await self._before(found.offset, found.records + 1)
        return after is None if before is None else found.continues(before)

    async def _before(self, offset: int, width: int, *, checked: bool = False) -> LocatedVersion | None:
        """The last version that begins before `offset`, sought in the last `width` offsets first.

        Unless it is to be checked, an honest message before is taken to end where it says, and a transaction after it.
        To look costs two records.
        """
        high = offset
        while high > self._oldest:
            low = max(self._oldest, high - width)
            last = await self._last(low, high if checked else high - 1, checked=checked)
            begun = None if last is None else await self._cursor.back_to_beginning(last, self._oldest)
            if (version := await self._version(begun)) is not None:
                return version
            if not checked:
                checked = True
            elif last is None:
                high, width = low, 2 * width
            else:
                high, width = last.offset, 1
        return None

    async def _last(self, low: int, high: int, *, checked: bool) -> Piece | None:
        """The last chunk between two offsets, or an earlier one of the same message."""
        found = None
        while low < high and (piece := await self._cursor.first(low, high)) is not None:
            found = piece
            after = piece.offset - piece.chunk.index + piece.chunk.count
            passes = piece.offset < after <= high and (not checked or await self._ends_as_it_says(piece))
            low = after if passes else piece.offset + 1
        return found

    async def _version(self, begun: Piece | None) -> LocatedVersion | None:
        """The version that begins there, if it is one."""
        prelude = None if begun is None else await self._cursor.prelude(begun, self._end)
        if begun is None or prelude is None:
            return None
        head = prelude.head
        if not isinstance(head, VersionHead) or head.number != begun.number:
            return None
        return LocatedVersion(head, self._cursor.at.partition, begun.offset, begun.chunk.count, prelude.digest)

"""Versions that the board does not hold, looked up in `<f>.models` when somebody asks for one.

Records there bear their version's number as key, and numbers rise with offsets: halving finds the place in a few reads,
however long the log is.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace

from llmos_stream.broker import Broker, Reader, Record, TopicPartition, Topics
from llmos_stream.dashboard.provenance import Origin
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.scan import HeadStream
from llmos_stream.types import VersionHead
from llmos_stream.wire import read_chunk

_SECONDS = 10.0
_POLL_SECONDS = 0.1
_KEPT = 16
_KEPT_CONTRIBUTIONS = 20_000


class NotInLog(LookupError):
    """No such version is there, or not any more. Its text says which."""


class OlderVersions:
    """One is looked up at a time, for at most `seconds`; a few of the last ones asked for are kept.

    `broker` gives the broker, or raises BrokerUnavailable while there is none.
    """

    def __init__(self, broker: Callable[[], Broker], federation: str, seconds: float = _SECONDS) -> None:
        self._broker = broker
        self._at = TopicPartition(Topics(federation).models, 0)
        self._seconds = seconds
        self._one_at_a_time = asyncio.Lock()
        self._kept: OrderedDict[int, Origin] = OrderedDict()
        self.waiting = 0

    async def get(self, number: int) -> Origin:
        """Raises NotInLog, TopicMissing, BrokerUnavailable, and TimeoutError where it takes too long."""
        self.waiting += 1
        try:
            async with self._one_at_a_time:
                if number not in self._kept:
                    async with asyncio.timeout(self._seconds):
                        self._keep(await self._look_up(number))
                self._kept.move_to_end(number)
                return self._kept[number]
        finally:
            self.waiting -= 1

    def _keep(self, origin: Origin) -> None:
        self._kept[origin.head.number] = origin
        while len(self._kept) > 1 and (
            len(self._kept) > _KEPT or sum(len(one.head.manifest) for one in self._kept.values()) > _KEPT_CONTRIBUTIONS
        ):
            self._kept.popitem(last=False)

    async def _look_up(self, number: int) -> Origin:
        async with self._broker().reader([self._at.topic], start="latest") as reader:
            try:
                reader.seek(self._at, await self._beginning(reader, number))
                heads = HeadStream(reader, VersionHead)
                while not (found := await heads.heads(_POLL_SECONDS)):
                    pass
            except OffsetGone:
                raise NotInLog(f"version {number} has just been deleted from the log by retention") from None
        one = found[0]
        if one.head.number != number:
            raise NotInLog(f"version {number} cannot be read in the log")
        return Origin(replace(one.head, tensors=None), one.partition, one.offset)

    async def _beginning(self, reader: Reader, number: int) -> int:
        """The offset of the version's first record. Raises NotInLog."""
        await reader.seek_to_beginning(self._at)
        oldest = low = await reader.position(self._at)
        high = end = (await reader.end_offsets())[self._at]
        while low < high:
            middle = (low + high) // 2
            record = await self._first(reader, middle, end)
            there = None if record is None else _version(record)
            if record is None or there is None or there > number:
                high = middle
            elif there < number:
                low = record.offset + 1
            elif (begins := record.offset - read_chunk(record.value or b"").index) >= oldest:
                return begins  # a message's records follow one another, without gaps
            else:
                break
        first = await self._first(reader, oldest, end)
        kept = None if first is None else _version(first)
        if kept is not None and number <= kept:
            raise NotInLog(f"version {number} is not in the log any more: retention has deleted it")
        raise NotInLog(f"version {number} is not in the log")

    async def _first(self, reader: Reader, offset: int, end: int) -> Record | None:
        """The first record from `offset` on; None where there is none before `end`."""
        reader.seek(self._at, offset)
        while await reader.position(self._at) < end:
            if records := await reader.poll(_POLL_SECONDS, max_records=1):
                return records[0]
        return None


def _version(record: Record) -> int | None:
    """The version that a record is a chunk of; None for one that is no chunk of any."""
    try:
        read_chunk(record.value or b"")
        return int(record.key or b"")
    except (Rejected, ValueError):
        return None

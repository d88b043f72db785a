"""One reader of messages for every topic: what it hands on, what it passes over, and when it is at its end."""

import logging

import pytest

from llmos_stream.broker import MemoryBroker, TopicPartition, TopicSpec
from llmos_stream.errors import OffsetGone
from llmos_stream.log.stream import MessageStream, RecordStream
from llmos_stream.wire import Assembler
from tests.wire.records import admit_all, records

_TOPIC = "f.models"
_AT = TopicPartition(_TOPIC, 0)


def _assembler() -> Assembler:
    return Assembler(admit_all, 1 << 20)


async def _broker(*values: bytes, **policy: str) -> MemoryBroker:
    broker = MemoryBroker()
    await broker.create_topics([TopicSpec(_TOPIC, 1, policy, 1)])
    async with broker.producer() as producer:
        for value in values:
            await producer.send(_TOPIC, value, key=b"k")
    return broker


async def test_what_was_fetched_and_not_looked_at_is_not_the_end() -> None:
    """One fetch may bring many messages, and each is assembled when it is asked for."""
    broker = await _broker(*records(sequence=0), *records(sequence=1))
    async with broker.reader([_TOPIC], start="earliest") as reader:
        stream = MessageStream(reader, _assembler())
        first = await stream.next(1.0)
        assert first is not None
        assert await reader.lag() == 0
        assert not await stream.at_end()
        second = await stream.next(1.0)
        assert second is not None
        assert second.first_offset > first.last_offset
        assert await stream.at_end()


async def test_rubbish_is_counted_and_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    broker = await _broker(b"rubbish", *records(), b"")
    async with broker.reader([_TOPIC], start="earliest") as reader:
        stream = MessageStream(reader, _assembler())
        assert [message.first_offset async for message in stream.to_end()] == [1]
        assert stream.positions[_AT] == await reader.position(_AT)
    assert [entry.getMessage().partition(":")[0] for entry in caplog.records] == [
        f"passed over what is at offset {offset} of {_TOPIC}" for offset in (0, len(records()) + 1)
    ]


async def test_a_seek_forgets_what_was_begun() -> None:
    values = records(b"x" * 300)
    broker = await _broker(*values)
    async with broker.reader([_TOPIC], start="earliest") as reader:
        stream = MessageStream(reader, _assembler())
        assert await stream.next(1.0) is not None
        stream.seek(_AT, 1)
        assert await stream.next(0.1) is None  # its beginning is before that, and no stranger wrote the rest
        stream.seek(_AT, 0)
        again = await stream.next(1.0)
        assert again is not None
        assert b"".join(again.parts) == b"x" * 300


async def test_where_retention_was_quicker_it_goes_on_with_the_oldest_left_or_leaves_it_to_the_caller() -> None:
    broker = await _broker(*(b"%d" % number * 1000 for number in range(300)), **{"retention.bytes": "20000"})
    told: list[dict[TopicPartition, int]] = []
    async with broker.reader([_TOPIC], start="latest") as reader:
        reader.seek(_AT, 0)
        with pytest.raises(OffsetGone):
            await RecordStream(reader).poll(0.1)
        stream = RecordStream(reader, on_gap=lambda _, oldest: told.append(dict(oldest)))
        assert await stream.poll(0.1) == []
        (record, *_) = await stream.poll(0.1)
    assert told == [{_AT: record.offset}]
    assert record.offset > 0

"""Steps that many broker tests take."""

import time
from collections.abc import Mapping

from llmos_stream.broker import Broker, Producer, Reader, Record, Sent, TopicPartition, TopicSpec

PATIENCE_SECONDS = 40.0
"""How long a test waits for what must come; on a busy machine Kafka takes its time."""
_LAST = b"the last record of the test"


async def make_topic(broker: Broker, name: str, partitions: int = 1, config: Mapping[str, str] | None = None) -> str:
    await broker.create_topics([TopicSpec(name, partitions, config or {})])
    return name


async def commit(broker: Broker, group: str, offsets: Mapping[TopicPartition, int]) -> None:
    """The offsets that a group goes on from, committed as the aggregator does it: in a transaction.

    Kafka says that it has committed a moment before the group's offsets tell of it: to open the producer again waits
    for that.
    """
    committing = f"{group}-committing"
    async with broker.producer(committing) as producer, producer.transaction() as transaction:
        await transaction.send_offsets(group, offsets)
    async with broker.producer(committing):
        pass


async def take(reader: Reader, count: int) -> list[Record]:
    """The next `count` records, or fewer when they do not come in time."""
    records: list[Record] = []
    while len(records) < count:
        found = await reader.poll(PATIENCE_SECONDS, count - len(records))
        if not found:
            break
        records += found
    return records


async def read_all(broker: Broker, topic: str) -> list[Record]:
    """All that can be seen of what was written so far, whatever is still to be settled about it.

    A last record on each partition marks where that ends: nobody sees it before all that is ahead of it is
    committed or aborted.
    """
    async with broker.reader([topic], start="earliest") as reader, broker.producer() as producer:
        missing = set(reader.partitions)
        for at in reader.partitions:
            await producer.send(topic, _LAST, key=_LAST, partition=at.partition)
        records: list[Record] = []
        while missing:
            found = await reader.poll(PATIENCE_SECONDS)
            assert found, f"nothing came within {PATIENCE_SECONDS} s"
            missing -= {TopicPartition(record.topic, record.partition) for record in found if record.key == _LAST}
            records += found
        return [record for record in records if record.key != _LAST]


async def catch_up(reader: Reader) -> list[Record]:
    """Poll until nothing lies ahead; what came by."""
    records = await reader.poll(0)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while await reader.lag() > 0:
        assert time.monotonic() < deadline, f"still behind after {PATIENCE_SECONDS} s"
        records += await reader.poll(0.1)
    return records


async def write_one(producer: Producer, topic: str, value: bytes) -> Sent:
    """A transaction of one record."""
    async with producer.transaction() as transaction:
        return await transaction.send(topic, value)


class Crash(Exception):
    """Something went wrong inside a transaction."""


async def write_and_crash(
    producer: Producer, topic: str, value: bytes, offsets: Mapping[TopicPartition, int] | None = None, group: str = ""
) -> None:
    """A transaction that an error of the program ends."""
    async with producer.transaction() as transaction:
        await transaction.send(topic, value)
        await transaction.send_offsets(group, offsets or {})
        raise Crash


def values(records: list[Record]) -> list[bytes | None]:
    return [record.value for record in records]

"""What both brokers promise of writing and reading. Every test here runs on the in-process broker and on real Kafka."""

import asyncio
import time
from collections.abc import Iterator

import pytest

from llmos_stream.broker import Broker, Record, Sent, TopicPartition
from llmos_stream.broker.placement import MAX_RECORD_BYTES, partition_of, record_bytes
from llmos_stream.errors import BrokerError, OffsetGone, RecordTooLarge
from tests.broker.helpers import (
    PATIENCE_SECONDS,
    commit,
    make_topic,
    read_all,
    take,
    values,
)

# Writing and reading


async def test_records_come_back_whole_and_in_order(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    before = int(time.time() * 1000)
    async with broker.producer() as producer:
        sent = [
            await producer.send(topic, b"one", key=b"k", headers=[("kind", b"chunk"), ("empty", b"")]),
            await producer.send(topic, b"", key=b"k"),
            await producer.send(topic, None, key=b"k"),
            await producer.send(topic, b"no key"),
        ]
    assert sent == [Sent(topic, 0, offset) for offset in range(4)]
    records = await read_all(broker, topic)
    assert [(record.offset, record.key, record.value) for record in records] == [
        (0, b"k", b"one"),
        (1, b"k", b""),
        (2, b"k", None),
        (3, None, b"no key"),
    ]
    assert records[0].headers == (("kind", b"chunk"), ("empty", b""))
    assert records[1].headers == ()
    assert all(before <= record.timestamp_ms <= int(time.time() * 1000) for record in records)


@pytest.mark.parametrize("transactional", [False, True])
async def test_the_first_of_several_records_carries_the_headers(
    broker: Broker, federation: str, transactional: bool
) -> None:
    topic, headers = await make_topic(broker, federation), (("traceparent", b"00-1"),)
    async with broker.producer(federation if transactional else None) as producer:
        if transactional:
            async with producer.transaction() as transaction:
                await transaction.send_all(topic, [b"a", b"b", b"c"], key=b"k", headers=headers)
        else:
            await producer.send_all(topic, [b"a", b"b", b"c"], key=b"k", headers=headers)
    assert [record.headers for record in await read_all(broker, topic)] == [headers, (), ()]


async def test_headers_count_towards_the_size_of_the_first_of_several(broker: Broker, federation: str) -> None:
    topic, headers = await make_topic(broker, federation), [("name", b"value")]
    most = MAX_RECORD_BYTES - record_bytes(None, b"")
    async with broker.producer() as producer:
        await producer.send_all(topic, [b"", bytes(most)], headers=headers)
        with pytest.raises(RecordTooLarge):
            await producer.send_all(topic, [bytes(most)], headers=headers)


async def test_keys_choose_the_partition_as_kafkas_own_clients_do(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation, 5)
    keys = [b"", b"a", b"ab", b"abc", b"abcd", b"client-17", bytes(range(256))]
    async with broker.producer() as producer:
        chosen = [(await producer.send(topic, b"x", key=key)).partition for key in keys]
        assert chosen == [partition_of(key, 5) for key in keys]
        assert (await producer.send(topic, b"x", key=b"a", partition=4)).partition == 4
        with pytest.raises(ValueError, match="no partition 5"):
            await producer.send(topic, b"x", partition=5)


async def test_records_without_a_key_take_the_partitions_in_turn(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation, 3)
    async with broker.producer() as producer:
        assert [(await producer.send(topic, b"x")).partition for _ in range(6)] == [0, 1, 2, 0, 1, 2]


async def test_many_megabytes_go_to_one_partition_in_order(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation, 3)
    produced = []

    def chunks() -> Iterator[bytes]:
        for number in range(12):
            produced.append(number)
            yield number.to_bytes(2) * 450_000

    async with broker.producer() as producer:
        await producer.send(topic, b"before", partition=partition_of(b"client", 3))
        first = await producer.send_all(topic, chunks(), key=b"client")
        assert first == Sent(topic, partition_of(b"client", 3), 1)
        with pytest.raises(ValueError, match="nothing"):
            await producer.send_all(topic, [], key=b"client")
    assert produced == list(range(12))
    records = [record for record in await read_all(broker, topic) if record.key == b"client"]
    assert [record.value for record in records] == [number.to_bytes(2) * 450_000 for number in range(12)]
    assert [record.offset for record in records] == list(range(1, 13))


async def test_many_producers_interleave_and_each_keeps_its_order(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)

    async def write(name: int) -> None:
        async with broker.producer() as producer:
            for number in range(20):
                await producer.send(topic, bytes([name, number]))

    async with asyncio.TaskGroup() as group:
        for name in range(5):
            group.create_task(write(name))
    records = await read_all(broker, topic)
    assert [record.offset for record in records] == list(range(100))
    for name in range(5):
        assert [record.value[1] for record in records if record.value and record.value[0] == name] == list(range(20))


async def test_the_largest_record_fits_and_one_byte_more_does_not(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    key, headers = b"key", [("name", b"value")]
    most = MAX_RECORD_BYTES - record_bytes(key, b"", headers)
    async with broker.producer() as producer:
        await producer.send(topic, bytes(most), key=key, headers=headers)
        with pytest.raises(RecordTooLarge, match="CHUNK_BYTES"):
            await producer.send(topic, bytes(most + 1), key=key, headers=headers)
        with pytest.raises(RecordTooLarge):
            await producer.send_all(topic, [b"small", bytes(MAX_RECORD_BYTES)])
        await producer.send(topic, b"still usable")
    assert values(await read_all(broker, topic)) == [bytes(most), b"small", b"still usable"]


async def test_a_topic_with_a_lower_limit_refuses_what_exceeds_it(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation, config={"max.message.bytes": "10000"})
    async with broker.producer() as producer:
        await producer.send(topic, bytes(9000))
        with pytest.raises(RecordTooLarge):
            await producer.send(topic, bytes(11_000))
    assert len(await read_all(broker, topic)) == 1


async def test_a_tombstone_needs_a_key_and_a_compacted_topic_too(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation, config={"cleanup.policy": "compact"})
    async with broker.producer() as producer:
        with pytest.raises(ValueError, match="tombstone"):
            await producer.send(topic, None)
        await producer.send(topic, b"1", key=b"lr")
        await producer.send(topic, None, key=b"lr")
        with pytest.raises(BrokerError):
            await producer.send(topic, b"1")
    assert values(await read_all(broker, topic)) == [b"1", None]


async def test_a_reader_may_leave_kafkas_checksums_out(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="earliest", check_crcs=False) as reader:
        await producer.send(topic, b"carries a digest of its own")
        assert values(await take(reader, 1)) == [b"carries a digest of its own"]


# Waiting


async def test_a_poll_with_nothing_to_read_returns_empty_in_time(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.reader([topic], start="earliest") as reader:
        began = time.monotonic()
        assert await reader.poll(0.2) == []
        assert 0.15 < time.monotonic() - began < PATIENCE_SECONDS
        assert await reader.poll(0) == []


async def test_a_waiting_poll_wakes_when_something_arrives(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="latest") as reader:
        assert await reader.poll(0) == []
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            poll = group.create_task(reader.poll(60))
            group.create_task(producer.send(topic, b"wake"))
        assert values(poll.result()) == [b"wake"]
        assert time.monotonic() - began < PATIENCE_SECONDS


async def test_a_cancelled_poll_loses_nothing(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await reader.poll(60)
        await producer.send(topic, b"later")
        assert values(await take(reader, 1)) == [b"later"]


# Positions


async def test_a_reader_takes_all_partitions_of_all_its_topics(broker: Broker, federation: str) -> None:
    two, one = await make_topic(broker, f"{federation}.b", 2), await make_topic(broker, f"{federation}.a")
    async with broker.producer() as producer:
        for topic, partition in ((two, 0), (two, 1), (one, 0)):
            for number in range(3):
                await producer.send(topic, bytes([number]), partition=partition)
    async with broker.reader([two, one], start="earliest") as reader:
        assert reader.partitions == (TopicPartition(one, 0), TopicPartition(two, 0), TopicPartition(two, 1))
        assert await reader.lag() == 9
        assert await reader.end_offsets() == dict.fromkeys(reader.partitions, 3)
        records = await take(reader, 9)
        for at in reader.partitions:
            own = [record.value for record in records if (record.topic, record.partition) == at]
            assert own == [b"\0", b"\1", b"\2"]
        assert await reader.lag() == 0


async def test_a_poll_returns_at_most_what_was_asked_for(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer:
        await producer.send_all(topic, [bytes([number]) for number in range(10)])
    async with broker.reader([topic], start="earliest") as reader:
        found: list[Record] = []
        while len(found) < 10:
            some = await reader.poll(PATIENCE_SECONDS, max_records=3)
            assert 1 <= len(some) <= 3
            found += some
        assert values(found) == [bytes([number]) for number in range(10)]


async def test_seeking_moves_and_position_tells(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with broker.producer() as producer:
        await producer.send_all(topic, [bytes([number]) for number in range(5)])
        async with broker.reader([topic], start="latest") as reader:
            assert await reader.position(at) == 5
            reader.seek(at, 3)
            assert await reader.position(at) == 3
            assert values(await take(reader, 2)) == [b"\3", b"\4"]
            await reader.seek_to_beginning()
            assert await reader.position(at) == 0
            assert values(await take(reader, 1)) == [b"\0"]
            reader.seek(at, (await reader.end_offsets())[at])
            await producer.send(topic, b"new")
            assert values(await take(reader, 1)) == [b"new"]
            with pytest.raises(ValueError, match="negative"):
                reader.seek(at, -1)
            with pytest.raises(ValueError, match="partitions"):
                reader.seek(TopicPartition(topic, 1), 0)


async def test_an_offset_that_never_was_is_gone_until_a_seek(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        await producer.send(topic, b"here")
        reader.seek(TopicPartition(topic, 0), 100)
        for _ in range(2):
            with pytest.raises(OffsetGone, match=federation):
                await reader.poll(PATIENCE_SECONDS)
        await reader.seek_to_beginning()
        assert values(await take(reader, 1)) == [b"here"]


async def test_a_group_goes_on_where_it_committed(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with broker.producer() as producer:
        await producer.send_all(topic, [bytes([number]) for number in range(4)])
    async with broker.reader([topic], start="committed", group=federation) as reader:
        assert await reader.committed(at) is None
        assert values(await take(reader, 4)) == [b"\0", b"\1", b"\2", b"\3"]
        await commit(broker, federation, {at: 2})
        await commit(broker, federation, {})
    async with broker.reader([topic], start="committed", group=federation) as reader:
        assert await reader.committed(at) == 2
        assert values(await take(reader, 2)) == [b"\2", b"\3"]
    async with broker.reader([topic], start="committed", group=f"{federation}-other") as reader:
        assert await reader.position(at) == 0


async def test_what_makes_no_sense_for_a_reader_is_refused(broker: Broker, federation: str) -> None:
    with pytest.raises(ValueError, match="group"):
        broker.reader([federation], start="committed")
    with pytest.raises(ValueError, match="topics"):
        broker.reader([], start="earliest")
    with pytest.raises(ValueError, match="topics"):
        broker.reader("name", start="earliest")
    topic = await make_topic(broker, federation)
    async with broker.reader([topic], start="earliest") as reader:
        with pytest.raises(ValueError, match="group"):
            await reader.committed(TopicPartition(topic, 0))


async def test_the_lag_is_known_from_what_was_fetched(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        await producer.send_all(topic, [b"x"] * 5)
        taken = 0
        while taken < 3:
            taken += len(await reader.poll(PATIENCE_SECONDS, max_records=3 - taken))
        assert await reader.known_lag() == await reader.lag() == 2

"""What only the in-process broker has: a clock of its own, bounds, and many event loops."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmos_stream.broker import MemoryBroker, TopicPartition
from llmos_stream.errors import Fenced, OffsetGone
from tests.broker.helpers import PATIENCE_SECONDS, catch_up, commit, make_topic, read_all, take, values, write_one


class Clock:
    def __init__(self) -> None:
        self.seconds = 1_000_000.0

    def __call__(self) -> float:
        return self.seconds


async def test_timestamps_come_from_the_clock() -> None:
    broker = MemoryBroker(clock=Clock())
    topic = await make_topic(broker, "t")
    async with broker.producer() as producer:
        await producer.send(topic, b"x")
    (record,) = await read_all(broker, topic)
    assert record.timestamp_ms == 1_000_000_000


async def test_a_reader_that_retention_has_overtaken_is_told() -> None:
    clock = Clock()
    broker = MemoryBroker(clock=clock)
    topic = await make_topic(broker, "t", config={"retention.ms": "60000"})
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        await producer.send_all(topic, [b"1", b"2", b"3"])
        assert values(await take(reader, 1)) == [b"1"]
        clock.seconds += 61
        broker.clean()
        with pytest.raises(OffsetGone, match=r"t\[0\]"):
            await reader.poll(0)
        await producer.send(topic, b"4")
        await reader.seek_to_beginning()
        assert values(await catch_up(reader)) == [b"4"]


async def test_a_gone_partition_does_not_hide_what_others_have() -> None:
    clock = Clock()
    broker = MemoryBroker(clock=clock)
    topic = await make_topic(broker, "t", 2, {"retention.ms": "60000"})
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        await producer.send(topic, b"old", partition=1)
        clock.seconds += 61
        broker.clean()
        await producer.send(topic, b"new", partition=0)
        assert values(await reader.poll(0)) == [b"new"]
        with pytest.raises(OffsetGone, match=r"t\[1\]"):
            await reader.poll(0)


def _held_bytes(broker: MemoryBroker) -> int:
    return sum(log.bytes for topic in broker._cluster._topics.values() for log in topic.logs)


async def test_memory_stays_within_bounds_however_much_is_written() -> None:
    broker = MemoryBroker(partition_bytes=100_000)
    topic = await make_topic(broker, "t", config={"retention.ms": "-1"})
    async with broker.producer() as producer:
        for _ in range(100):
            await producer.send_all(topic, [bytes(5000)] * 10)
            assert _held_bytes(broker) < 100_000 * 9 / 8 + 6000
        await broker.delete_topics([topic])
    assert _held_bytes(broker) == 0


async def test_a_transaction_that_hangs_is_given_up_and_its_producer_fenced() -> None:
    clock = Clock()
    broker = MemoryBroker(clock=clock, transaction_timeout_seconds=30)
    topic = await make_topic(broker, "t")

    async with broker.producer("id") as hanging, broker.producer() as other:

        async def hang() -> None:
            async with hanging.transaction() as transaction:
                await transaction.send(topic, b"hangs")
                await other.send(topic, b"behind")
                async with broker.reader([topic], start="earliest") as reader:
                    assert await reader.poll(0) == []
                    clock.seconds += 31
                    assert values(await reader.poll(0)) == [b"behind"]

        with pytest.raises(Fenced, match="id"):
            await hang()
        with pytest.raises(Fenced):
            await write_one(hanging, topic, b"late")
    async with broker.producer("id") as successor:
        await write_one(successor, topic, b"successor")
    assert values(await read_all(broker, topic)) == [b"behind", b"successor"]


async def test_a_sleeping_poll_sees_the_end_of_an_abandoned_transaction() -> None:
    broker = MemoryBroker(transaction_timeout_seconds=0.3)
    topic = await make_topic(broker, "t")
    hanging, other = broker.producer("id"), broker.producer()
    async with broker.reader([topic], start="earliest") as reader, other:
        await hanging.__aenter__()
        transaction = await hanging.transaction().__aenter__()
        await transaction.send(topic, b"hangs")
        await other.send(topic, b"behind")
        assert values(await reader.poll(PATIENCE_SECONDS)) == [b"behind"]


async def test_closing_a_producer_gives_its_id_back() -> None:
    broker = MemoryBroker()
    topic = await make_topic(broker, "t")
    async with broker.producer("id") as older, broker.producer("id") as newer:
        await older.__aexit__(None, None, None)
        await write_one(newer, topic, b"newer")
    assert values(await read_all(broker, topic)) == [b"newer"]


def test_event_loops_in_many_threads_share_one_log() -> None:
    broker = MemoryBroker()
    threads, each = 4, 50
    everybody_reads = threading.Barrier(threads)

    async def take_part(name: int) -> list[bytes | None]:
        async with (
            broker.producer() as plain,
            broker.producer(f"id-{name}") as transactional,
            broker.reader(["t"], start="earliest") as reader,
        ):
            poll = asyncio.create_task(take(reader, threads * each * 2))
            await asyncio.to_thread(everybody_reads.wait, PATIENCE_SECONDS)
            for number in range(each):
                await plain.send("t", bytes([name, 0, number]))
                await write_one(transactional, "t", bytes([name, 1, number]))
            return values(await poll)

    asyncio.run(make_topic(broker, "t", 3))
    with ThreadPoolExecutor(threads) as pool:
        results = [pool.submit(asyncio.run, take_part(name)) for name in range(threads)]
        seen = [result.result(PATIENCE_SECONDS * 2) for result in results]
    everything = sorted(
        bytes([name, kind, number]) for name in range(threads) for kind in (0, 1) for number in range(each)
    )
    for one in seen:
        assert sorted(value for value in one if value) == everything


def test_a_poll_in_one_thread_wakes_when_another_writes() -> None:
    broker = MemoryBroker()
    asyncio.run(make_topic(broker, "t"))
    waiting = threading.Event()

    async def wait() -> list[bytes | None]:
        async with broker.reader(["t"], start="earliest") as reader:
            assert await reader.poll(0) == []
            waiting.set()
            return values(await reader.poll(60))

    async def write() -> None:
        async with broker.producer() as producer:
            await producer.send("t", b"from afar")

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(asyncio.run, wait())
        assert waiting.wait(PATIENCE_SECONDS)
        asyncio.run(write())
        assert result.result(PATIENCE_SECONDS) == [b"from afar"]


async def test_a_busy_partition_does_not_starve_the_others() -> None:
    broker = MemoryBroker()
    topic = await make_topic(broker, "t", 2)
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        await producer.send_all(topic, [b"busy"] * 100, partition=0)
        await producer.send(topic, b"quiet", partition=1)
        first_two = await reader.poll(0, max_records=10) + await reader.poll(0, max_records=10)
        assert b"quiet" in values(first_two)


async def test_a_topic_deleted_under_a_transaction_does_not_stop_its_end() -> None:
    broker = MemoryBroker()
    await make_topic(broker, "gone")
    await make_topic(broker, "t")
    async with broker.producer("id") as producer:
        async with producer.transaction() as transaction:
            await transaction.send("gone", b"x")
            await transaction.send("t", b"kept")
            await transaction.send_offsets("g", {TopicPartition("gone", 0): 1})
            await broker.delete_topics(["gone"])
            await make_topic(broker, "gone")
        await write_one(producer, "gone", b"new")
    assert values(await read_all(broker, "t")) == [b"kept"]
    assert values(await read_all(broker, "gone")) == [b"new"]


async def test_offsets_of_a_deleted_topic_go_with_it() -> None:
    broker = MemoryBroker()
    at = TopicPartition(await make_topic(broker, "t"), 0)
    await commit(broker, "g", {at: 0})
    await broker.delete_topics(["t"])
    await make_topic(broker, "t")
    async with broker.reader(["t"], start="committed", group="g") as reader:
        assert await reader.committed(at) is None

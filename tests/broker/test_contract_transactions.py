"""What both brokers promise of transactions. Every test here runs on the in-process broker and on real Kafka."""

import asyncio
from contextlib import suppress

import pytest

from llmos_stream.broker import Broker, Producer, TopicPartition
from llmos_stream.broker.placement import MAX_RECORD_BYTES
from llmos_stream.errors import Fenced, RecordTooLarge, TransactionAborted
from tests.broker.helpers import (
    Crash,
    catch_up,
    make_topic,
    read_all,
    take,
    values,
    write_and_crash,
    write_one,
)


async def test_a_transaction_is_seen_when_it_has_committed_and_not_before(broker: Broker, federation: str) -> None:
    one, two = await make_topic(broker, f"{federation}.a"), await make_topic(broker, f"{federation}.b")
    async with broker.producer(federation) as producer, broker.reader([one, two], start="earliest") as reader:
        async with producer.transaction() as transaction:
            await transaction.send(one, b"1")
            await transaction.send_all(two, [b"2", b"3"])
            assert await reader.poll(0.3) == []
            assert await reader.lag() == 0
        assert sorted(values(await take(reader, 3)), key=str) == [b"1", b"2", b"3"]


async def test_what_follows_an_open_transaction_waits_for_it(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with (
        broker.producer(federation) as producer,
        broker.producer() as other,
        broker.reader([topic], start="earliest") as reader,
    ):
        await other.send(topic, b"before")
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"inside")
            assert (await other.send(topic, b"after")).offset == 2
            assert values(await take(reader, 1)) == [b"before"]
            assert await reader.poll(0.3) == []
            assert await reader.end_offsets() == {at: 1}
            assert await reader.end_offsets(undecided=True) == {at: 3}
        assert values(await take(reader, 2)) == [b"inside", b"after"]
        assert await reader.end_offsets() == await reader.end_offsets(undecided=True) == {at: 4}


async def test_an_aborted_transaction_is_never_seen(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with broker.producer(federation) as producer, broker.reader([topic], start="earliest") as reader:
        with pytest.raises(Crash):
            await write_and_crash(producer, topic, b"lost")
        sent = await write_one(producer, topic, b"kept")
        assert sent.offset == 2  # after the lost record and the abort
        assert values(await take(reader, 1)) == [b"kept"]
        assert await catch_up(reader) == []
        assert await reader.position(at) == (await reader.end_offsets())[at] == 4


async def test_offsets_are_committed_with_the_transaction_or_not_at_all(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with (
        broker.producer(federation) as producer,
        broker.reader([topic], start="earliest", group=federation) as reader,
    ):
        with pytest.raises(Crash):
            await write_and_crash(producer, topic, b"lost", {at: 7}, federation)
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"kept")
            await transaction.send_offsets(federation, {at: 8})
            await transaction.send_offsets(federation, {})
            await transaction.send_offsets(federation, {at: 9})
            assert await reader.committed(at) is None
    async with broker.producer(federation), broker.reader([topic], start="committed", group=federation) as reader:
        assert await reader.committed(at) == await reader.position(at) == 9


async def test_the_last_offsets_stand_for_whoever_opens_the_id_next(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    for offset in range(1, 4):
        async with broker.producer(federation) as producer:
            async with broker.reader([topic], start="committed", group=federation) as reader:
                assert await reader.position(at) == offset - 1
            async with producer.transaction() as transaction:
                await transaction.send_offsets(federation, {at: offset})


async def test_a_swallowed_failure_cannot_commit_the_rest(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)

    async def swallow(producer: Producer) -> None:
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"half")
            with pytest.raises(RecordTooLarge):
                await transaction.send(topic, bytes(MAX_RECORD_BYTES))

    async with broker.producer(federation) as producer:
        with pytest.raises(TransactionAborted):
            await swallow(producer)
        await write_one(producer, topic, b"whole")
    assert values(await read_all(broker, topic)) == [b"whole"]


async def test_a_cancelled_transaction_is_aborted(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    written = asyncio.Event()

    async def write_and_hang(producer: Producer) -> None:
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"lost")
            written.set()
            await asyncio.Event().wait()

    async with broker.producer(federation) as producer:
        hanging = asyncio.create_task(write_and_hang(producer))
        await written.wait()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        await write_one(producer, topic, b"kept")
    assert values(await read_all(broker, topic)) == [b"kept"]


async def test_an_empty_transaction_commits(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer(federation) as producer:
        async with producer.transaction():
            pass
        with pytest.raises(Crash):
            async with producer.transaction():
                raise Crash
    assert await read_all(broker, topic) == []


async def test_a_newer_producer_fences_the_older_at_every_step(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer(federation) as older:
        async with older.transaction() as transaction:
            await transaction.send(topic, b"older")
        async with broker.producer(federation) as newer:
            with pytest.raises(Fenced, match=federation):
                await write_one(older, topic, b"zombie")
            with pytest.raises(Fenced):
                await write_one(older, topic, b"zombie again")
            await write_one(newer, topic, b"newer")
    assert values(await read_all(broker, topic)) == [b"older", b"newer"]


async def test_what_a_crashed_producer_left_open_is_aborted_by_its_successor(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)

    async def crash(producer: Producer) -> None:
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"left open")
            await write_one(other, topic, b"behind it")
            assert await reader.poll(0.3) == []
            async with broker.producer(federation) as successor:
                await write_one(successor, topic, b"successor")

    async with (
        broker.producer(federation) as crashed,
        broker.producer(f"{federation}-2") as other,
        broker.reader([topic], start="earliest") as reader,
    ):
        with pytest.raises(Fenced):
            await crash(crashed)
    assert values(await read_all(broker, topic)) == [b"behind it", b"successor"]


async def test_being_fenced_is_not_hidden_by_a_program_that_goes_on(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)

    async def swallow(producer: Producer) -> None:
        async with producer.transaction() as transaction:
            with suppress(Fenced):
                await transaction.send(topic, b"zombie")

    async with broker.producer(federation) as older, broker.producer(federation):
        with pytest.raises(Fenced):
            await swallow(older)
    assert await read_all(broker, topic) == []


async def test_rules_of_transactions(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    async with broker.producer() as plain, broker.producer(federation) as producer:
        with pytest.raises(ValueError, match="transactional id"):
            async with plain.transaction():
                pass
        with pytest.raises(ValueError, match="inside"):
            await producer.send(topic, b"x")
        with pytest.raises(ValueError, match="inside"):
            await producer.send_all(topic, [b"x"])
        async with producer.transaction() as transaction:
            await transaction.send_offsets("one", {at: 0})
            with pytest.raises(ValueError, match="one group"):
                await transaction.send_offsets("two", {at: 0})
            with pytest.raises(ValueError, match="one transaction at a time"):
                async with producer.transaction():
                    pass
        with pytest.raises(ValueError, match="has ended"):
            await transaction.send(topic, b"x")

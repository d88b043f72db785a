"""A Kafka that restarts, crashes or stays away while it is used."""

import asyncio
import time
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from llmos_stream.broker import LocalKafka, Producer, TopicPartition, connect
from llmos_stream.errors import BrokerUnavailable
from tests.broker.helpers import commit, make_topic, read_all, take, values, write_one
from tests.conftest import KafkaNode


@pytest.mark.kafka
@pytest.mark.own_kafka
async def test_nothing_is_lost_doubled_or_disordered_by_a_restart(
    own: LocalKafka, kafka: KafkaNode, federation: str
) -> None:
    broker = connect(kafka.settings())
    one, two = await make_topic(broker, f"{federation}.a"), await make_topic(broker, f"{federation}.b")
    restarted = asyncio.Event()

    async def restart() -> None:
        await asyncio.to_thread(own.restart)
        restarted.set()

    async def write(producer: Producer, topic: str) -> int:
        count = 0
        while not restarted.is_set():
            number = count.to_bytes(4)
            await (write_one(producer, topic, number) if topic == two else producer.send(topic, number))
            count += 1
        return count

    async with (
        broker.producer() as plain,
        broker.producer(federation) as transactional,
        broker.reader([one, two], start="committed", group=federation) as reader,
    ):
        async with asyncio.TaskGroup() as group:
            group.create_task(restart())
            counts = [group.create_task(write(plain, one)), group.create_task(write(transactional, two))]
        wanted = [count.result() for count in counts]
        records = await take(reader, sum(wanted))
        for topic, count in zip((one, two), wanted, strict=True):
            assert values([record for record in records if record.topic == topic]) == [
                number.to_bytes(4) for number in range(count)
            ]
        at = TopicPartition(one, 0)
        await commit(broker, federation, {at: wanted[0]})
        assert await reader.committed(at) == wanted[0]


@pytest.mark.kafka
@pytest.mark.own_kafka
async def test_a_transaction_survives_a_crash_of_the_broker(own: LocalKafka, kafka: KafkaNode, federation: str) -> None:
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)

    async def write() -> None:
        async with broker.producer(federation) as producer, producer.transaction() as transaction:
            await transaction.send(topic, b"before")
            await asyncio.to_thread(own.kill)
            starting = asyncio.create_task(asyncio.to_thread(own.start))
            await transaction.send(topic, b"after")
            await starting

    await write()
    assert values(await read_all(broker, topic)) == [b"before", b"after"]


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
async def test_a_broker_that_stays_away_is_an_error_in_time_and_nothing_hangs(
    own: LocalKafka, kafka: KafkaNode, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = kafka.settings().model_copy(update={"request_timeout_seconds": 1.0, "connect_timeout_seconds": 1.0})
    broker = connect(settings)
    topic = await make_topic(broker, federation)
    at = TopicPartition(topic, 0)
    began = time.monotonic()

    async def write(producer: Producer) -> None:
        async with producer.transaction() as transaction:
            await transaction.send(topic, b"in doubt")
            await asyncio.to_thread(own.kill)

    async with (
        broker.producer() as plain,
        broker.producer(federation) as transactional,
        broker.reader([topic], start="earliest", group=federation) as reader,
    ):
        await plain.send(topic, b"safe")
        assert values(await take(reader, 1)) == [b"safe"]
        with pytest.raises(BrokerUnavailable, match="read back"):
            await write(transactional)
        with pytest.raises(BrokerUnavailable, match="read back"):
            await write_one(transactional, topic, b"refused")
        for _ in range(2):
            with pytest.raises(BrokerUnavailable, match=kafka.bootstrap_servers):
                await plain.send(topic, b"in doubt")
        assert await reader.poll(0.1) == []
        for call in (reader.end_offsets(), reader.committed(at), broker.list_topics()):
            with pytest.raises(BrokerUnavailable, match=kafka.bootstrap_servers):
                await call
    assert time.monotonic() - began < 40
    assert len(caplog.records) < 15

    await asyncio.to_thread(own.start)
    patient = connect(kafka.settings())
    async with patient.producer(federation) as successor:
        await write_one(successor, topic, b"successor")
    assert values(await read_all(patient, topic)) == [b"safe", b"successor"]


@pytest.mark.kafka
async def test_a_broker_that_goes_while_a_coordinator_is_looked_up_is_asked_again(
    kafka: KafkaNode, federation: str
) -> None:
    broker = connect(kafka.settings())
    topic = await make_topic(broker, federation)
    async with broker.producer(federation) as producer:
        await write_one(producer, topic, b"before")
        client: Any = producer
        sender = client._client._sender
        send, gone = sender.client.send, asyncio.Event()

        async def closed_once(*arguments: Any, **options: Any) -> Any:
            if not gone.is_set():
                gone.set()
                raise KafkaConnectionError("Connection closed")
            return await send(*arguments, **options)

        sender._coordinators.clear()
        sender.client.send = closed_once
        await write_one(producer, topic, b"after")
        assert gone.is_set()
    assert values(await read_all(broker, topic)) == [b"before", b"after"]

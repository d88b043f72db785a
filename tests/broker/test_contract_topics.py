"""What both brokers promise of topics. Every test here runs on the in-process broker and on real Kafka."""

import asyncio
import logging
import time

import pytest

from llmos_stream.broker import Broker, Reader, Topics, TopicSpec
from llmos_stream.broker.placement import MAX_RECORD_BYTES
from llmos_stream.config import TopicSettings
from llmos_stream.errors import TopicMissing
from tests.broker.helpers import (
    PATIENCE_SECONDS,
    make_topic,
    read_all,
    write_one,
)


async def test_topics_are_created_once_with_their_policies(broker: Broker, federation: str) -> None:
    topics = Topics(federation)
    specs = topics.specs(TopicSettings(updates_partitions=3))
    assert sorted(await broker.create_topics(specs)) == sorted(topics.names)
    assert await broker.create_topics(specs) == []
    found = {info.name: info for info in await broker.list_topics(federation)}
    assert {name: info.partitions for name, info in found.items()} == {spec.name: spec.partitions for spec in specs}
    assert {name: dict(info.config) for name, info in found.items()} == {spec.name: dict(spec.config) for spec in specs}


async def test_two_who_create_at_once_do_not_get_in_each_others_way(broker: Broker, federation: str) -> None:
    specs = Topics(federation).specs(TopicSettings())
    created = await asyncio.gather(*[broker.create_topics(specs) for _ in range(3)])
    assert sorted(name for names in created for name in names) == sorted(spec.name for spec in specs)


async def test_an_existing_topic_that_differs_is_left_and_logged(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    await make_topic(broker, federation, 2, {"retention.ms": "1000000"})
    with caplog.at_level(logging.INFO):
        assert await broker.create_topics([TopicSpec(federation, 1, {"retention.ms": "2000000"})]) == []
    assert "2 partitions, not 1" in caplog.text
    assert "retention.ms is 1000000, not 2000000" in caplog.text
    (info,) = await broker.list_topics(federation)
    assert (info.partitions, info.config) == (2, {"retention.ms": "1000000"})


async def test_what_holds_for_a_topic_is_seen_wherever_it_was_set_and_can_be_changed(
    broker: Broker, federation: str
) -> None:
    topic = await make_topic(broker, federation, config={"retention.ms": "1000000", "compression.type": "producer"})
    (info,) = await broker.list_topics(federation)
    assert info.effective["retention.ms"] == "1000000"
    assert info.effective["max.message.bytes"] == str(MAX_RECORD_BYTES)
    await broker.configure_topic(topic, {"retention.ms": "2000000", "max.message.bytes": "10000"})
    (info,) = await broker.list_topics(federation)
    assert info.config == {"retention.ms": "2000000", "compression.type": "producer", "max.message.bytes": "10000"}
    assert info.effective.items() >= info.config.items()
    with pytest.raises(TopicMissing, match="never-was"):
        await broker.configure_topic(f"{federation}.never-was", {"retention.ms": "1"})


async def test_a_broker_says_how_long_a_transaction_may_take_or_nothing(broker: Broker) -> None:
    assert await broker.longest_transaction_seconds() in {None, 900.0}


async def test_only_topics_with_the_prefix_are_listed(broker: Broker, federation: str) -> None:
    for name in (f"{federation}.b", f"{federation}.a", f"x{federation}.a"):
        await make_topic(broker, name)
    assert [info.name for info in await broker.list_topics(f"{federation}.")] == [f"{federation}.a", f"{federation}.b"]
    assert not [info.name for info in await broker.list_topics() if info.name.startswith("__")]


async def test_a_deleted_topic_is_gone_and_can_be_created_anew(broker: Broker, federation: str) -> None:
    topic = await make_topic(broker, federation)
    async with broker.producer() as producer:
        await producer.send(topic, b"old")
    await broker.delete_topics([topic, f"{federation}.never-was"])
    assert await broker.list_topics(federation) == []
    assert await broker.create_topics([TopicSpec(topic)]) == [topic]
    assert await read_all(broker, topic) == []


async def test_a_missing_topic_says_what_to_do(broker: Broker, federation: str) -> None:
    async with broker.producer() as producer:
        with pytest.raises(TopicMissing, match=f"{federation}.*topics create"):
            await producer.send(federation, b"x")
    with pytest.raises(TopicMissing, match=federation):
        async with broker.reader([federation], start="earliest"):
            pass
    assert await broker.list_topics(federation) == []


# Topics that go while they are in use


async def _until_missing(reader: Reader, federation: str) -> str:
    """What a reader says once its topic is gone; until then it finds nothing."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                await reader.poll(0.2)
            except TopicMissing as error:
                return str(error)


async def test_a_reader_hears_that_its_topic_was_deleted(broker: Broker, federation: str) -> None:
    kept, gone = await make_topic(broker, f"{federation}.a"), await make_topic(broker, f"{federation}.b")
    async with broker.reader([kept, gone], start="earliest") as reader:
        assert await reader.poll(0.1) == []
        await broker.delete_topics([gone])
        said = await _until_missing(reader, federation)
        assert f"no topic {gone}" in said
        assert "topics create" in said
        with pytest.raises(TopicMissing):
            await reader.end_offsets()


async def test_a_reader_hears_that_its_topic_was_made_anew_with_fewer_partitions(
    broker: Broker, federation: str
) -> None:
    topic = await make_topic(broker, federation, 3)
    async with broker.reader([topic], start="earliest") as reader:
        assert await reader.poll(0.1) == []
        await broker.delete_topics([topic])
        await make_topic(broker, topic, 1)
        assert f"partition 1 of topic {topic}" in await _until_missing(reader, federation)


@pytest.mark.parametrize("transactional", [False, True])
async def test_a_producer_hears_that_its_topic_was_deleted(
    broker: Broker, federation: str, transactional: bool
) -> None:
    topic = await make_topic(broker, federation)
    async with asyncio.timeout(PATIENCE_SECONDS), broker.producer(federation if transactional else None) as producer:

        async def write() -> None:
            if transactional:
                await write_one(producer, topic, b"x")
            else:
                await producer.send(topic, b"x")

        await write()
        await broker.delete_topics([topic])
        began = time.monotonic()
        with pytest.raises(TopicMissing, match=f"no topic {topic}.*topics create"):
            await write()
    assert time.monotonic() - began < PATIENCE_SECONDS / 2

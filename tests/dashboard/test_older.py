"""Versions that are older than what the page holds are looked up in the log."""

import asyncio
from dataclasses import replace

import pytest

from llmos_stream.broker import Broker, MemoryBroker, Record, Topics, TopicSpec
from llmos_stream.broker.memory.reader import MemoryReader
from llmos_stream.config import Settings
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.errors import NotFound, TopicMissing
from llmos_stream.types import TensorSpec
from llmos_stream.wire import message_id, pack_prelude, read_chunk, split
from tests.dashboard.aids import SECONDS, head, shown

_CHUNK = 1500


async def write_versions(broker: Broker, federation: str, numbers: range) -> None:
    """Versions of one to four records each, each in a transaction, whose end takes an offset too."""
    async with broker.producer(f"{federation}-writer") as producer:
        for number in numbers:
            size = 100 + _CHUNK * (number % 4)
            said = replace(head(number), payload_size=size, tensors=(TensorSpec("w", (size,), "float32"),))
            prelude, identity = pack_prelude(said), message_id("aggregator", number)
            records = split(prelude, [bytes(size)], payload_size=size, message_id=identity, chunk_bytes=_CHUNK)
            async with producer.transaction() as transaction:
                key = str(number).encode()
                await transaction.send_all(Topics(federation).models, records, key=key, partition=0)


async def test_any_version_of_the_log_is_found(broker: Broker, federation: str) -> None:
    older = OlderVersions(lambda: broker, federation, SECONDS)
    with pytest.raises(TopicMissing):
        await older.get(3)
    await broker.create_topics(Topics(federation).specs(Settings().topics))
    with pytest.raises(NotFound, match=r"version 3 is not in the log$"):
        await older.get(3)
    await write_versions(broker, federation, range(40))
    places = []
    for number in [*range(6), 19, 20, *range(37, 40)]:
        found = await older.get(number)
        assert found.head == replace(head(number), payload_size=100 + _CHUNK * (number % 4), tensors=None)
        places.append(found.offset)
    assert places == sorted(set(places))
    for number in (40, 2**62):
        with pytest.raises(NotFound, match=rf"version {number} is not in the log$"):
            await older.get(number)


async def test_one_that_retention_has_deleted_is_said_to_be(federation: str) -> None:
    topic = Topics(federation).models
    broker = MemoryBroker()
    await broker.create_topics([TopicSpec(topic, 1, {"retention.bytes": "60000"})])
    await write_versions(broker, federation, range(100))
    broker.clean()
    older = OlderVersions(lambda: broker, federation, SECONDS)
    async with broker.reader([topic], start="earliest") as reader:
        kept = [int(record.key or b"") for record in await reader.poll(0) if read_chunk(record.value or b"").index == 0]
    assert 5 < len(kept) < 90
    for number in kept:
        assert (await older.get(number)).head.number == number
    for number in range(kept[0]):
        with pytest.raises(NotFound, match=f"version {number} is not in the log any more: retention has deleted it"):
            await older.get(number)


async def test_few_are_kept_and_each_is_read_once(federation: str) -> None:
    broker, asked = MemoryBroker(), []

    def here() -> Broker:
        asked.append(1)
        return broker

    await broker.create_topics(Topics(federation).specs(Settings().topics))
    await write_versions(broker, federation, range(30))
    older = OlderVersions(here, federation, SECONDS)
    await asyncio.gather(*(older.get(7) for _ in range(5)))
    assert (len(asked), older.waiting) == (1, 0)
    for number in range(8, 30):
        await older.get(7)
        await older.get(number)
    assert len(asked) == 23  # what is asked for again stays
    assert len(older._kept) == 16
    await older.get(9)
    assert len(asked) == 24


async def test_a_log_that_says_nothing_is_waited_for_so_long(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker = MemoryBroker()
    await broker.create_topics(Topics(federation).specs(Settings().topics))
    await write_versions(broker, federation, range(3))

    async def poll(reader: object, timeout_seconds: float, max_records: int = 0) -> list[Record]:
        await asyncio.sleep(timeout_seconds)
        return []

    monkeypatch.setattr(MemoryReader, "poll", poll)
    older = OlderVersions(lambda: broker, federation, seconds=0.05)
    with pytest.raises(TimeoutError):
        await older.get(2)
    assert older.waiting == 0


async def test_a_version_that_was_begun_and_has_no_head_is_none(federation: str) -> None:
    broker = MemoryBroker()
    await broker.create_topics(Topics(federation).specs(Settings().topics))
    async with broker.producer() as producer:
        said = replace(head(5), payload_size=4 * _CHUNK, tensors=())
        records = split(pack_prelude(said), [bytes(4 * _CHUNK)], 4 * _CHUNK, message_id("a", 5), chunk_bytes=16)
        await producer.send(Topics(federation).models, next(records), key=b"5", partition=0)
    with pytest.raises(NotFound, match=r"version 5 is not in the log$"):
        await OlderVersions(lambda: broker, federation, SECONDS).get(5)


async def test_the_page_asks_the_log(federation: str) -> None:
    broker = MemoryBroker()
    await broker.create_topics(Topics("trial").specs(Settings().topics))
    await write_versions(broker, "trial", range(5))
    async with shown(log=lambda: broker) as here:
        here.view.add_version(head(4), 0, 17)
        found = (await here.http.get("/api/versions/2")).json()
        assert [item["client"] for item in found["contributions"]] == ["client-0", "client-1"]
        assert found["weights_digest"] == (2).to_bytes(32, "big").hex()
        missing = await here.http.get("/api/versions/9")
        assert missing.status_code == 404
        assert "version 9 is not in the log; a registry may have it" in missing.json()["detail"]

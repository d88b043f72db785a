"""What one client may take of an aggregator's log and time."""

import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import AggregatorSettings
from llmos_stream.roles.aggregator import quota
from tests.roles.aids import aggregator, delta_of, settings_for, update

_SETTINGS = AggregatorSettings()


def test_a_flood_of_refusals_is_not_written_down() -> None:
    limit = quota.RefusalQuota(_SETTINGS)
    assert sum(limit.takes(b"flood", 100, 0.0) for _ in range(20_000)) == 64
    assert limit.takes(b"another", 100, 0.0)
    others = sum(limit.takes(str(number).encode(), 100, 1.0) for number in range(20_000))
    assert others == quota.OF_ALL * 64 - 64 - 1
    assert limit.takes(b"flood", 100, 1 + quota.SECONDS)


def test_long_refusals_are_fewer() -> None:
    limit = quota.RefusalQuota(_SETTINGS)
    kept = _SETTINGS.refused_bytes_kept
    assert sum(limit.takes(b"flood", kept // 8, 0.0) for _ in range(50)) == 8
    assert limit.takes(b"another", kept, 0.0)
    assert sum(limit.takes(str(number).encode(), kept, 1.0) for number in range(1000)) == quota.OF_ALL - 2
    assert limit.takes(b"flood", kept, 1 + quota.SECONDS)


async def test_an_update_under_another_key_than_its_clients_is_refused(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation)) as running:
        await running.send(update(delta_of(5.0), client_id="victim"), "thief")
        await running.send(update(delta_of(1.0), client_id="victim"), "victim")
        version = await running.version(1)
        (entry,) = await running.quarantined(1)
    assert torch.equal(version.weights, delta_of(1.0))
    assert entry["reason"] == "wrong_key"


async def test_a_flood_leaves_a_bounded_number_of_entries(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    async with aggregator(broker, settings) as running:
        async with broker.producer() as producer:
            for number in range(500):
                await producer.send(running.topics.updates, b"rubbish %d" % number, key=b"flood")
        await running.send(update(delta_of(1.0)))
        await running.version(1)
        await running.stop()
        async with broker.reader([running.topics.quarantine], start="earliest") as reader:
            assert len(await reader.poll(1.0, 1000)) == 64

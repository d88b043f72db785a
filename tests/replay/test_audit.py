"""Provenance: shares, and whether what a version was made of is still in the log."""

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.replay.audit import Presence, audit
from llmos_stream.replay.index import Missing
from tests.replay.aids import replay_log, write_random
from tests.roles.aids import NUMEL


async def test_every_contribution_is_found_and_weighed(broker: Broker, federation: str) -> None:
    settings = await write_random(broker, federation, "sgd", count=4)
    async with replay_log(broker, settings) as log:
        found = await audit(log, 4)
        begin = await audit(log, 0)
        with pytest.raises(Missing, match="version 9 is not in the log, which holds 0 to 4"):
            await audit(log, 9)
    assert [item.presence for item in found.items] == [Presence.PRESENT] * 2
    one, other = found.items
    assert one.share is not None
    assert other.share is not None
    # n s(tau) clip / sum n: 10 and 17 examples
    first, second = one.contribution, other.contribution
    assert one.share == pytest.approx(10 * (1 + first.staleness) ** -0.5 * first.clip / 27)
    assert other.share == pytest.approx(17 * (1 + second.staleness) ** -0.5 * second.clip / 27)
    assert [item.base_version for item in found.items] == [3 - first.staleness, 3 - second.staleness]
    assert begin.items == []
    assert found.moments_kept is None


async def test_the_share_under_fedasync_is_the_rate(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "fedasync", count=2)
    async with replay_log(broker, settings) as log:
        found = await audit(log, 2)
    assert found.items[0].share == found.items[0].contribution.weight <= 0.6


async def test_what_is_gone_or_another_is_said(federation: str) -> None:
    broker = MemoryBroker(partition_bytes=1 << 14)
    settings = await write_random(broker, federation, "adam", count=3)
    topic = f"{federation}.updates"
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        while await reader.position(reader.partitions[0]) == 0:
            await producer.send(topic, bytes(NUMEL * 8), key=b"x", partition=0)
            await reader.seek_to_beginning()
    async with replay_log(broker, settings) as log:
        found = await audit(log, 1)
    assert found.items[0].presence is Presence.GONE
    assert "has been deleted by retention" in found.items[0].detail
    assert found.moments_kept

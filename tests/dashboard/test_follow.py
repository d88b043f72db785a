"""What the page follows beside the events: heads of versions, from not too far back, and what operators say."""

import asyncio
from dataclasses import replace

import pytest

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import FederationSettings, Settings
from llmos_stream.dashboard import follow as follow_module
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.dashboard.follow import follow
from llmos_stream.log.pausing import set_paused
from llmos_stream.registry import promote
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import until
from llmos_stream.types import TensorSpec
from llmos_stream.wire import message_id, pack_prelude, split
from tests.dashboard.aids import SECONDS, head

SETTINGS = Settings(federation=FederationSettings(name="followed"))
TOPICS = Topics("followed")


async def write(broker: Broker, numbers: range) -> None:
    """Versions of three records each."""
    async with broker.producer() as producer:
        for number in numbers:
            said = replace(head(number), payload_size=3000, tensors=(TensorSpec("w", (750,), "float32"),))
            prelude, place = pack_prelude(said), message_id("aggregator", number)
            records = split(prelude, [bytes(3000)], payload_size=3000, message_id=place, chunk_bytes=1500)
            await producer.send_all(TOPICS.models, records, key=str(number).encode(), partition=0)


async def test_versions_from_not_too_far_back_then_new_ones_a_pause_and_a_promotion(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(follow_module, "_LOOK_BACK", 30)
    view, shutdown = FederationView("followed"), Shutdown()
    async with MemoryBroker() as broker, Offload(1) as offload:
        await broker.create_topics(TOPICS.specs(SETTINGS.topics))
        await write(broker, range(1, 101))
        following = asyncio.create_task(follow(broker, TOPICS, view, shutdown))

        def held() -> list[int]:
            return [origin.head.number for origin in view.versions]

        await until(lambda: 100 in held())
        assert 5 <= len(held()) <= 30
        assert held() == list(range(held()[0], 101))
        await write(broker, range(101, 103))
        await until(lambda: 102 in held())
        found = view.versions.get(102)
        assert found is not None
        assert found.head.tensors is None
        assert [item.client_id for item in found.head.manifest] == ["client-0", "client-1"]
        await set_paused(broker, TOPICS, True)
        await until(lambda: view.control.paused)
        await promote(broker, Topics(SETTINGS.federation.name), SETTINGS.registry, 101, offload)
        await until(lambda: view.control.promoted == 101)
        shutdown.request()
        async with asyncio.timeout(SECONDS):
            await following


async def test_a_page_before_its_federation_waits_and_can_be_stopped() -> None:
    view, shutdown = FederationView("followed"), Shutdown()
    async with MemoryBroker() as broker:
        following = asyncio.create_task(follow(broker, TOPICS, view, shutdown))
        await asyncio.sleep(0)
        shutdown.request()
        async with asyncio.timeout(SECONDS):
            await following
    assert view.status == "waiting"

"""An operator's pause on both brokers: nobody trains, nothing is folded, nothing is lost."""

import asyncio
import logging
import math
from contextlib import AsyncExitStack
from dataclasses import replace

import pytest
import torch
from prometheus_client import REGISTRY

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.broker.ports import Reader
from llmos_stream.core import Update
from llmos_stream.errors import FederationFinished, TopicMissing
from llmos_stream.log import ControlView
from llmos_stream.log.pausing import set_paused, updates_kept_hours
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator.intake import Intake
from llmos_stream.runtime import Offload
from llmos_stream.testing import ManualClock
from tests.federation import federation_of
from tests.roles.aids import LAYOUT, NUMEL, aggregator, delta_of, settings_for, update
from tests.roles.test_pipeline import Federation

_BEATS = 5


async def _hear(reader: Reader, view: ControlView, beats: int) -> None:
    """Wait until the leader has been heard so often again."""
    until = view.beats + beats
    while view.beats < until:
        await view.poll(0.1)


def _is_paused(view: ControlView) -> bool:
    return view.paused


async def _logged(caplog: pytest.LogCaptureFixture, text: str) -> None:
    async with asyncio.timeout(60):
        while text not in caplog.text:  # noqa: ASYNC110  a log has nothing to wait on
            await asyncio.sleep(0.01)


async def test_nothing_is_folded_while_it_is_paused(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    async with aggregator(broker, settings) as running, AsyncExitStack() as stack:
        await running.version(0)
        await set_paused(broker, Topics(settings.federation.name), True)
        await _logged(caplog, "paused: nothing is folded")
        for client in "ab":
            await running.send(update(delta_of(1.0), client_id=client), client)
        reader = await stack.enter_async_context(broker.reader([running.topics.control], start="earliest"))
        view = ControlView(reader)
        await view.catch_up()
        await _hear(reader, view, _BEATS)
        assert _is_paused(view)
        assert view.latest is not None
        assert view.latest.version == 0
        assert REGISTRY.get_sample_value("llmos_paused") == 1
        await set_paused(broker, Topics(settings.federation.name), False)
        version = await running.version(1)
        await view.catch_up()
        assert not _is_paused(view)
    assert sorted(item.client_id for item in version.head.manifest) == ["a", "b"]
    assert "going on after the pause" in caplog.text
    assert REGISTRY.get_sample_value("llmos_paused") == 0


async def test_a_pause_outlives_the_aggregator(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        await set_paused(broker, Topics(settings.federation.name), True)
        await running.stop()
        await running.send(update(delta_of(1.0)))
    async with aggregator(broker, settings) as running:
        await _logged(caplog, "paused: nothing is folded")
        await set_paused(broker, Topics(settings.federation.name), False)
        await running.version(1)


async def test_clients_rest(broker: Broker, federation: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(
        federation,
        task={"entry": "blobs", "shards": 1},
        client={"id": "client-0", "wait_seconds": 0.1},
        stop={"max_versions": 6},
    )
    run = Federation(broker, settings, [settings])

    async def pause() -> None:
        async with asyncio.timeout(60):
            while not run.of("version_published"):  # noqa: ASYNC110  nor has a list
                await asyncio.sleep(0.01)
        await set_paused(broker, Topics(settings.federation.name), True)
        await _logged(caplog, "the federation is paused")
        async with broker.reader([Topics(federation).control], start="earliest") as reader:
            view = ControlView(reader)
            await view.catch_up()
            sent = caplog.text.count("on version")
            await _hear(reader, view, _BEATS)
            assert caplog.text.count("on version") == sent < 6
        await set_paused(broker, Topics(settings.federation.name), False)

    await asyncio.gather(run.run(), pause())
    assert len(run.of("update_sent")) >= 6


async def test_what_is_half_received_outlives_a_pause(federation: str) -> None:
    """Its rest may lie in the log unread, however long the pause."""
    settings = settings_for(federation, wire={"incomplete_seconds": 5.0})
    broker, topics = MemoryBroker(), Topics(federation)
    await broker.create_topics(topics.specs(settings.topics))
    first, *rest = update(torch.ones(NUMEL), 32)
    reading = broker.reader([topics.updates], start="committed", group="test", check_crcs=False)
    async with Offload(1) as offload, broker.producer() as producer, reading as reader:
        clock = ManualClock()
        here = replace(federation_of(broker, settings, offload), clock=clock)
        source = Intake(here, reader, LAYOUT, local_rule(settings), settings.aggregator.decode_bytes)
        await producer.send(topics.updates, first, key=b"a")
        assert [item async for item in source.receive(0.1, 0)] == []
        clock.advance(3600.0)
        assert [item async for item in source.receive(0.1, 0)] == []
        await producer.send_all(topics.updates, rest, key=b"a")
        (whole,) = [item async for item in source.receive(0.1, 0)]
    assert isinstance(whole, Update)


async def test_updates_lost_in_a_pause_are_said_to_be(federation: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    broker, settings = MemoryBroker(partition_bytes=1 << 16), settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        await set_paused(broker, Topics(settings.federation.name), True)
        await _logged(caplog, "paused: nothing is folded")
        async with broker.producer() as producer:
            for _ in range(10):
                await producer.send(running.topics.updates, b"rubbish" * 1500, key=b"a")
        await set_paused(broker, Topics(settings.federation.name), False)
        await _logged(caplog, "deleted by retention")
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    (said,) = (record.getMessage() for record in caplog.records if "deleted by retention" in record.getMessage())
    assert "while the federation was paused: what is under way then waits for topics.updates_retention_hours" in said


@pytest.mark.parametrize(
    ("hours", "config", "kept"),
    [
        (36.0, {}, 36.0),
        (24.0, {"retention.ms": "5400000"}, 1.5),  # as the topic has it, whatever the settings say now
        (24.0, {"retention.ms": "-1"}, math.inf),
        (24.0, {"retention.ms": None}, None),
    ],
)
async def test_how_long_updates_wait_is_told_by_their_topic(
    broker: Broker, federation: str, hours: float, config: dict[str, str | None], kept: float | None
) -> None:
    settings = settings_for(federation, topics={"updates_retention_hours": hours})
    specs = Topics(federation).specs(settings.topics)
    updates = {name: value for name, value in {**specs[0].config, **config}.items() if value is not None}
    await broker.create_topics([replace(specs[0], config=updates), *specs[1:]])
    assert await updates_kept_hours(broker, Topics(settings.federation.name)) == kept


async def test_there_must_be_somebody_to_hear_it(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, stop={"max_versions": 1})
    with pytest.raises(TopicMissing):
        await set_paused(broker, Topics(settings.federation.name), True)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        await asyncio.wait([running.task])
        with pytest.raises(FederationFinished, match="has ended: max_versions"):
            await set_paused(broker, Topics(settings.federation.name), True)

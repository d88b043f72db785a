"""Backpressure on both brokers: the aggregator tells how busy it is, and clients leave it the time it asks for."""

import pytest

from llmos_stream.broker import Broker
from llmos_stream.core import Pace
from llmos_stream.log import ControlView
from llmos_stream.wire.events import whole
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.roles.test_pipeline import Federation


async def test_the_leader_says_how_busy_it_is(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation, aggregation={"buffer_size": 2})) as running:
        for client in "abcd":
            await running.send(update(delta_of(1.0), client_id=client), client)
        await running.version(2)
        published = await running.events("version_published", 3)
        async with broker.reader([running.topics.control], start="earliest") as reader:
            control = ControlView(reader)
            while control.leader is None or not control.leader.pace_seconds:
                await control.poll(0.1)
    # Four clients, none of which may take more than its share of the time: four times what an update costs.
    assert 0 < control.leader.pace_seconds < 60
    assert [event.data["pace_seconds"] != 0 for event in published] == [False, False, True]
    assert all(whole(event.data["lag"]) is not None for event in published)


async def test_clients_leave_the_time_that_they_are_asked_for(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Pace, "interval", lambda self, clients: 0.6)
    settings = settings_for(
        federation,
        task={"entry": "blobs", "shards": 1},
        client={"id": "client-0", "wait_seconds": 1.0},
        stop={"max_versions": 5},
    )
    run = Federation(broker, settings, [settings])
    await run.run()
    sent = [event.time_ms for event in run.of("update_sent")]
    assert len(sent) >= 5
    # The first may go before the pace is known, and on a busy machine one more; training takes next to nothing.
    assert sent[-1] - sent[1] > 600 * (len(sent) - 3)

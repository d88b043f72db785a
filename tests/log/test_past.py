"""What the log says has happened: the events, and the versions whose events retention has deleted."""

import pytest

from llmos_stream.broker import Broker, MemoryBroker, Topics, TopicSpec
from llmos_stream.config import Settings
from llmos_stream.errors import TopicMissing
from llmos_stream.log.federation import Federation
from llmos_stream.log.past import past_events
from llmos_stream.reporting import History
from llmos_stream.runtime import Offload, Shutdown
from tests.roles.aids import aggregator, delta_of, settings_for, update

_VERSIONS = 6


async def _history(broker: Broker, settings: Settings) -> History:
    history = History()
    async with Offload(1) as offload:
        topics = Topics(settings.federation.name)
        federation = Federation(broker, topics, settings.wire, offload, Shutdown())
        async with federation.control() as control:
            async for event in past_events(federation, control.finished):
                history.add(event)
    return history


async def _run(broker: Broker, settings: Settings) -> None:
    """Let a run make its versions and end."""
    async with aggregator(broker, settings) as running:
        for number in range(_VERSIONS):
            client = f"client-{number % 2}"
            await running.send(update(delta_of(0.1), client_id=client, sequence=number), client)
        await running.task


def _settings() -> Settings:
    return settings_for("past", stop={"max_versions": _VERSIONS})


async def test_a_run_that_has_ended_and_one_under_way_are_told_from_their_events() -> None:
    async with MemoryBroker() as broker:
        async with aggregator(broker, _settings()) as running:
            await running.send(update(delta_of(0.1), client_id="a", sequence=0))
            await running.version(1)
            under_way = await _history(broker, _settings())
        assert (under_way.version, under_way.folded, under_way.finish) == (1, 1, None)
        await _run(broker, _settings())
        ended = await _history(broker, _settings())
    assert (ended.version, ended.version_count, ended.folded) == (_VERSIONS, _VERSIONS, _VERSIONS)
    assert ended.finish is not None
    assert ended.finish.reason == "max_versions"


@pytest.mark.parametrize("kept_bytes", [0, 1500])
async def test_where_events_are_gone_the_versions_say_what_was_folded(kept_bytes: int) -> None:
    async with MemoryBroker() as broker:
        await _run(broker, _settings())
        whole = await _history(broker, _settings())
    async with MemoryBroker() as broker:
        await broker.create_topics([TopicSpec("past.events", 1, {"retention.bytes": str(kept_bytes)}, 1)])
        await _run(broker, _settings())
        left = await _history(broker, _settings())
    assert left.version_count == whole.version_count == _VERSIONS
    assert left.folded == whole.folded == _VERSIONS
    shares = [{row.client.client_id: row.share for row in history.rows()} for history in (left, whole)]
    assert shares[0] == shares[1] == {"client-0": 0.5, "client-1": 0.5}
    assert left.finish is not None
    assert left.finish.reason == "max_versions"


async def test_a_federation_that_is_not_there() -> None:
    async with MemoryBroker() as broker:
        with pytest.raises(TopicMissing):
            await _history(broker, _settings())

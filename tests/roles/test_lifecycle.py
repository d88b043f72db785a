"""The end of a run at an operator's wish, and its going on after an end, on both brokers."""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import ClientSettings, Settings
from llmos_stream.errors import FederationFinished, NotFound, TopicMissing
from llmos_stream.log import RunEnd
from llmos_stream.log.events import emit, read_events
from llmos_stream.log.past import past_events
from llmos_stream.reporting.history.fold import History
from llmos_stream.roles.aggregator import run_aggregator
from llmos_stream.roles.aggregator.finishing import finish_run
from llmos_stream.roles.client import Client, ClientState
from llmos_stream.roles.client.participation import Participation
from llmos_stream.runtime import SYSTEM_CLOCK, Offload, Shutdown
from llmos_stream.testing import RunningFederation, running_federation
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import EventKind
from llmos_stream.wire.control import FINISH, RUN, dump_finish, dump_run_end
from tests.federation import event, federation_of
from tests.roles.aids import LAYOUT, aggregator, control_of, delta_of, initial, publish_random, settings_for


def _capped(federation: str, most: int, **sections: Any) -> Settings:
    return settings_for(federation, stop={"max_versions": most}, **sections)


async def _ended_at(broker: Broker, settings: Settings, last: int, first: int = 1) -> RunEnd:
    """Run until its cap."""
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(first, last + 1))
        end = await running.task
    assert end is not None
    return end


async def _finish(broker: Broker, settings: Settings) -> RunEnd | None:
    async with Offload(1) as offload:
        return await finish_run(federation_of(broker, settings, offload), settings)


@asynccontextmanager
async def _resumed(broker: Broker, settings: Settings) -> AsyncIterator[RunningFederation]:
    async with running_federation(initial(), settings, broker, resume=True) as running:
        yield running


async def _refused(broker: Broker, settings: Settings, *, resume: bool = False) -> str:
    async with Offload(1) as offload:
        with pytest.raises(FederationFinished) as caught:
            await run_aggregator(broker, settings, initial, offload, Shutdown(), resume=resume)
    return str(caught.value)


async def test_an_operator_ends_a_run_as_a_stop_rule_does(broker: Broker, federation: str) -> None:
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 3))
        end = await _finish(broker, settings)
        assert end is not None
        assert (end.reason, end.version) == ("finish", 2)
        assert await running.task == end
        assert (await running.events("run_finished"))[0].data["reason"] == "finish"
        control = await control_of(running)
    assert (control.finished, control.asked_to_finish) == (end, False)
    assert control.leader is not None
    assert control.leader.left
    assert await _finish(broker, settings) == end  # once more changes nothing


async def test_a_run_that_is_paused_can_be_ended(broker: Broker, federation: str) -> None:
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        async with broker.producer() as producer:
            await producer.send(running.topics.control, b'{"paused":true,"time_ms":1}', key=b"paused")
        assert await _finish(broker, settings) == await running.task


async def test_a_run_that_nobody_leads_is_ended_by_who_asks(broker: Broker, federation: str) -> None:
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 2))
    end = await _finish(broker, settings)
    assert end is not None
    assert (end.reason, end.version) == ("finish", 1)
    assert "ended at version 1 (finish)" in await _refused(broker, settings)


async def test_a_leader_that_died_does_not_keep_a_run_from_its_end(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        await running.kill()
        end = await _finish(broker, settings)
    assert end is not None
    assert (end.reason, end.version) == ("finish", 0)


async def test_a_standby_ends_with_the_run(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregator={"takeover_seconds": 600.0})
    async with aggregator(broker, settings) as first:
        await first.version(0)
        async with aggregator(broker, settings) as second:
            end = await _finish(broker, settings)
            assert await second.task == end
        assert await first.task == end


async def test_what_has_not_begun_cannot_be_finished(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    with pytest.raises(TopicMissing):
        await _finish(broker, settings)
    await broker.create_topics(Topics(federation).specs(settings.topics))
    with pytest.raises(NotFound, match="has not begun"):
        await _finish(broker, settings)


@pytest.mark.parametrize("full_every", [1, 4], ids=["full", "deltas"])
async def test_a_run_goes_on_under_a_higher_cap(broker: Broker, federation: str, full_every: int) -> None:
    sections = {"versions": {"full_every": full_every}, "server_optimizer": {"name": "adam"}}
    end = await _ended_at(broker, _capped(federation, 2, **sections), 2)
    assert (end.reason, end.version) == ("max_versions", 2)
    assert "another limit (as --stop.max-versions) or with --resume" in await _refused(
        broker, _capped(federation, 2, **sections)
    )
    async with aggregator(broker, _capped(federation, 4, **sections)) as running:
        await publish_random(running, range(3, 5))
        again = await running.task
        heads = [(await running.version(number)).head for number in range(5)]
        kinds = [each.kind for each in await running.events_until(lambda found: _ends(found) == 2)]
    assert again is not None
    assert (again.reason, again.version) == ("max_versions", 4)
    assert [head.parent for head in heads] == [None, 0, 1, 2, 3]
    assert kinds.count(EventKind.RUN_RESUMED) == 1

    # The same versions as of a run that never ended.
    other = MemoryBroker()
    async with aggregator(other, _capped(federation, 4, **sections)) as running:
        await publish_random(running, range(1, 5))
        straight = [(await running.version(number)).head for number in range(5)]
    assert [head.weights_digest for head in heads] == [head.weights_digest for head in straight]


def _ends(found: list[Any]) -> int:
    return sum(each.kind is EventKind.RUN_FINISHED for each in found)


async def test_what_was_sent_too_late_counts_once_the_run_goes_on(federation: str) -> None:
    broker = MemoryBroker()
    async with aggregator(broker, _capped(federation, 1)) as running:
        await publish_random(running, range(1, 2))
        await running.task
        await running.publish(delta_of(1.0), sequence=2, base_version=1)
    async with aggregator(broker, _capped(federation, 2)) as running:
        version = await running.version(2)
    assert [item.sequence for item in version.head.manifest] == [2]


async def test_a_run_that_an_operator_ended_goes_on_where_that_is_asked_for(broker: Broker, federation: str) -> None:
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 2))
        await _finish(broker, settings)
    assert "ended at version 1 (finish)" in await _refused(broker, settings)  # as a container that is started again
    async with _resumed(broker, settings) as running:
        await publish_random(running, range(2, 3))
        control = await control_of(running)
    assert control.finished is None
    assert control.has_ended


async def test_a_run_that_is_over_still_does_not_go_on(broker: Broker, federation: str) -> None:
    settings = _capped(federation, 2)
    await _ended_at(broker, settings, 2)
    said = await _refused(broker, settings, resume=True)
    assert "is over still: version 2 reached the limit of 2; change stop.max_versions to go on" in said
    # Nobody waits for an aggregator that only looked.
    end = await _ended_at(broker, _capped(federation, 3, aggregator={"takeover_seconds": 600.0}), 3, 3)
    assert end.version == 3


async def test_a_target_that_was_reached_must_be_raised(federation: str) -> None:
    broker = MemoryBroker()

    def of(target: float) -> Settings:
        return settings_for(federation, stop={"target": target})

    async with aggregator(broker, of(0.9)) as running, broker.producer() as producer:
        await running.version(0)
        measured = event(EventKind.EVALUATION, "evaluator", version=0, metrics={"accuracy": 0.92})
        await emit(producer, running.topics.evaluations, measured)
        end = await running.task
    assert end is not None
    assert end.reason == "target"
    assert "change stop.target" in await _refused(broker, of(0.91))
    async with aggregator(broker, of(0.95)) as running:
        await publish_random(running, range(1, 2))


async def test_the_time_of_a_run_counts_from_where_it_went_on(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation, stop={"max_seconds": 0.2})
    async with aggregator(broker, settings) as running:
        await running.version(0)
        end = await running.task
    assert end is not None
    assert end.reason == "max_seconds"
    longer = settings_for(federation, stop={"max_seconds": 600.0})
    async with aggregator(broker, longer) as running:
        await publish_random(running, range(1, 2))
    async with aggregator(broker, longer) as running:  # and after a crash, too
        await publish_random(running, range(2, 3))
    async with _resumed(broker, settings_for(federation, stop={"max_seconds": 600.0})) as running:
        await publish_random(running, range(3, 4))  # one that has not ended simply goes on


async def test_an_end_of_an_earlier_release_asks_for_the_word(federation: str) -> None:
    """It does not say which stop settings there were: others cannot be told from the same."""
    broker = MemoryBroker()
    async with aggregator(broker, settings_for(federation)) as running:
        await publish_random(running, range(1, 2))
    async with broker.producer() as producer:
        old = dump_run_end(RunEnd("max_versions", "version 1 reached the limit of 1", 1))
        await producer.send(Topics(federation).control, old, key=RUN)
    assert "--resume" in await _refused(broker, _capped(federation, 4))
    async with _resumed(broker, _capped(federation, 4)) as running:
        await publish_random(running, range(2, 3))


async def test_of_two_that_go_on_one_stands_by(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    await _ended_at(broker, _capped(federation, 1), 1)
    settings = _capped(federation, 3)
    async with aggregator(broker, settings) as first:
        await publish_random(first, range(2, 3))
        async with aggregator(broker, settings) as second:
            await second.until(lambda: any("standing by" in message for message in caplog.messages))
            await publish_random(first, range(3, 4))
            end = await first.task
            assert await second.task == end
    assert end is not None
    assert end.version == 3


async def test_a_wish_of_before_does_not_end_the_run_that_goes_on(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    await _ended_at(broker, _capped(federation, 1), 1)
    async with broker.producer() as producer:
        await producer.send(Topics(federation).control, dump_finish(1), key=FINISH)
    async with _resumed(broker, settings) as running:
        await publish_random(running, range(2, 4))


async def test_reports_know_that_a_run_goes_on(federation: str) -> None:
    broker = MemoryBroker()
    await _ended_at(broker, _capped(federation, 1), 1)

    async def told() -> History:
        history = History()
        async for found in read_events(broker, Topics(federation)):
            history.add(found)
        return history

    assert (await told()).finish is not None
    async with aggregator(broker, _capped(federation, 3)) as running:
        await publish_random(running, range(2, 3))
        during = await told()
        assert (during.finish, during.summary()["finished"], during.version) == (None, None, 2)
        past = [found.kind async for found in past_events(running.federation, (await control_of(running)).finished)]
        assert past.count(EventKind.RUN_FINISHED) == 1
        await publish_random(running, range(3, 4))
        await asyncio.wait([running.task])
    after = (await told()).finish
    assert after is not None
    assert after.version == 3


async def test_versions_of_both_parts_are_one_chain(federation: str) -> None:
    """A reader that was there before the end goes on after it."""
    broker = MemoryBroker()
    async with aggregator(broker, _capped(federation, 1, versions={"full_every": 8})) as first:
        await publish_random(first, range(1, 2))
        await first.task
        async with aggregator(broker, _capped(federation, 2, versions={"full_every": 8})) as second:
            await publish_random(second, range(2, 3))
            assert torch.equal((await first.version(2)).weights, (await second.version(2)).weights)


async def test_a_client_that_was_told_of_the_end_takes_part_again(federation: str) -> None:
    """As a script does that calls `train` again."""
    broker = MemoryBroker()
    async with aggregator(broker, _capped(federation, 1)) as first:
        await first.version(0)
        codec, participation = first.settings.codec, Participation(ClientSettings(wait_seconds=0.1), SYSTEM_CLOCK)
        async with Client(first.federation, "c", LAYOUT, codec, ClientState("c", None)) as client:
            participation.resume()
            version = await participation.next_version(client)
            assert version is not None
            await publish_random(first, range(1, 2))
            await first.task
            assert await participation.next_version(client) is None
            assert client.heard().ended == "max_versions"
            async with aggregator(broker, _capped(federation, 2)) as second:
                while client.heard().ended is not None:
                    await client.listen(1.0)
                version = await participation.next_version(client)
                assert version is not None
                trained = Trained(delta_of(1.0), version.head.number, 10, {}, 0.0)
                assert await participation.publish(client, trained) is not None
                made = await second.version(2)
    assert [item.client_id for item in made.head.manifest] == ["c"]

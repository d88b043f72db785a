"""A shadow beside a live run: the same accepted updates, its own rule, exactly once through its restarts."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, FederationFinished
from llmos_stream.log import RunEnd
from llmos_stream.replay.accepted import AcceptedUpdates
from llmos_stream.replay.audit import audit
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.shadow import run_shadow, shadow_settings
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation, WatchedLog, running_role
from llmos_stream.types import VersionHead
from tests.federation import federation_of
from tests.replay.aids import outcomes, replay_log, running_from, topics_of, verdicts_of, write_random
from tests.roles.aids import LAYOUT, delta_of, initial, settings_for


@contextlib.asynccontextmanager
async def _shadow(broker: Broker, settings: Settings, name: str = "s") -> AsyncIterator["asyncio.Task[RunEnd | None]"]:
    """A shadow until the block ends; then it is stopped in order."""
    async with running_role(lambda *given: run_shadow(broker, settings, name, *given)) as role:
        yield role.task


def _of(settings: Settings, name: str = "s") -> Settings:
    """Settings that name the shadow as a federation."""
    return shadow_settings(settings, name)


async def _heads(broker: Broker, settings: Settings) -> list[VersionHead]:
    async with replay_log(broker, settings) as log:
        return [entry.head for entry in log.index.versions.values()]


async def _reached(broker: Broker, settings: Settings, version: int, task: "asyncio.Task[Any]") -> None:
    """Wait until the shadow has published a version."""
    async with Offload(1) as offload, WatchedLog(federation_of(broker, _of(settings), offload), task) as shadow:
        await shadow.version(version)


async def _send(running: RunningFederation, client: str, sequence: int, base: int, value: float = 1.0) -> None:
    await running.publish(delta_of(value), client, sequence=sequence, base_version=base)


def _identities(heads: list[VersionHead]) -> list[tuple[str, int]]:
    return [(item.client_id, item.sequence) for head in heads for item in head.manifest]


@pytest.mark.parametrize("full_every", [1, 3])
async def test_under_the_same_rule_a_shadow_makes_the_same_versions(
    broker: Broker, federation: str, full_every: int
) -> None:
    settings = settings_for(
        federation, aggregation={"buffer_size": 2}, stop={"max_versions": 5}, versions={"full_every": full_every}
    )
    own = settings.model_copy(update={"stop": settings_for("x").stop})
    async with running_from(broker, settings, initial()) as running, _shadow(broker, own) as task:
        await _reached(broker, settings, 0, task)
        for number in range(10):
            await _send(running, "ab"[number % 2], number, max(0, number // 2 - number % 3), value=float(number))
            if number % 2:
                await running.version(number // 2 + 1)
        end = await task
    assert end is not None
    assert (end.reason, end.version) == ("live_ended", 5)
    live, shadow = await _heads(broker, settings), await _heads(broker, _of(settings))
    assert [head.weights_digest for head in shadow] == [head.weights_digest for head in live]
    assert [head.manifest for head in shadow] == [head.manifest for head in live]
    async with replay_log(broker, _of(settings)) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 5
        assert [str(item.presence) for item in (await audit(log, 3)).items] == ["present", "present"]
    with pytest.raises(FederationFinished, match="under another name"):
        async with _shadow(broker, own) as task:
            await task


async def test_a_shadow_makes_versions_of_as_many_updates_as_the_live_run_did(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": None}, stop={"max_versions": 6})
    own = settings.model_copy(update={"stop": settings_for("x").stop})
    async with running_from(broker, settings, initial()) as running, _shadow(broker, own) as task:
        await _reached(broker, settings, 0, task)
        for number in range(6):
            for client in "ab" if number > 1 else "a":
                await running.publish(delta_of(float(number)), client)
            await running.version(number + 1)
        end = await task
    assert end is not None
    assert (end.reason, end.version) == ("live_ended", 6)
    live, shadow = await _heads(broker, settings), await _heads(broker, _of(settings))
    assert [head.weights_digest for head in shadow] == [head.weights_digest for head in live]
    assert [head.manifest for head in shadow] == [head.manifest for head in live]


async def test_another_rule_with_bases_mapped_to_its_own_versions(broker: Broker, federation: str) -> None:
    """The live run makes a version of every update, the shadow one of every two."""
    settings = settings_for(federation)
    own = settings_for(federation, aggregation={"buffer_size": 2}, staleness={"kind": "polynomial", "a": 1.0})
    async with running_from(broker, settings, initial()) as running:
        for number in range(3):  # before the shadow begins
            await _send(running, "a", number, number)
            await running.version(number + 1)
        async with _shadow(broker, own) as task:
            await _reached(broker, settings, 3, task)
            # Trained on live 3, 4, 5, 6 in turn, and one on live 1, from before the shadow began.
            for number, base in enumerate((3, 4, 5, 1), start=3):
                await _send(running, "a", number, base)
                await running.version(number + 1)
            await _reached(broker, settings, 5, task)
    heads = await _heads(broker, _of(settings))
    assert [(head.number, head.parent) for head in heads] == [(3, None), (4, 3), (5, 4)]
    # Live 4 is shadow 3 (nothing made of it yet), live 5 is shadow 4.
    assert [[item.staleness for item in head.manifest] for head in heads] == [[], [0, 0], [0, 3]]
    assert [item.weight for item in heads[2].manifest] == [10.0, 2.5]
    async with replay_log(broker, _of(settings)) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL, RebuildOutcome.MATCH, RebuildOutcome.MATCH]
        weights = await log.weights(5)
    assert torch.allclose(weights, delta_of(3.0 + 1.0 + (10.0 + 2.5) / 20))


@pytest.mark.long_on_kafka
async def test_a_restart_folds_nothing_twice_and_leaves_nothing_out(broker: Broker, federation: str) -> None:
    """Versions of three in the live run, of two in the shadow: one is always half used when the shadow stops."""
    settings = settings_for(federation, aggregation={"buffer_size": 3})
    own = settings_for(
        federation,
        aggregation={"buffer_size": 2},
        staleness={"kind": "polynomial"},
        server_optimizer={"name": "sgd", "momentum": 0.5},
    )
    sequence = 0
    async with running_from(broker, settings, initial()) as running:
        for round_ in range(4):
            async with _shadow(broker, own) as task:
                await _reached(broker, settings, 3 * round_ // 2, task)
                for _ in range(3):
                    await _send(running, "abc"[sequence % 3], sequence, max(0, round_ - 1), value=float(sequence))
                    sequence += 1
                await running.version(round_ + 1)
                await _reached(broker, settings, 3 * (round_ + 1) // 2, task)
    live, heads = await _heads(broker, settings), await _heads(broker, _of(settings))
    assert _identities(heads) == _identities(live)
    assert len(set(_identities(heads))) == 12
    assert [len(head.manifest) for head in heads] == [0] + [2] * 6
    async with replay_log(broker, _of(settings)) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6


async def test_a_killed_shadow_goes_on_where_it_was(federation: str) -> None:
    """Cancelled at whatever point it has reached, time and again, while the live run goes on."""
    broker = MemoryBroker()
    settings = settings_for(federation, aggregation={"buffer_size": 3})
    own = settings_for(
        federation,
        aggregation={"buffer_size": 2},
        server_optimizer={"name": "adam"},
        aggregator={"beat_seconds": 0.01, "takeover_seconds": 0.03},
    )
    async with running_from(broker, settings, initial()) as running, Offload(2) as offload:
        for attempt in range(12):
            killed = asyncio.create_task(run_shadow(broker, own, "s", offload, Shutdown()))
            if attempt == 0:
                await _reached(broker, settings, 0, killed)
            for place in range(3):
                await _send(running, "abc"[place], attempt, attempt, value=float(attempt))
            await running.version(attempt + 1)
            await asyncio.wait([killed], timeout=0.01 * attempt)
            killed.cancel()
            await asyncio.wait([killed])
        async with _shadow(broker, own) as task:
            await _reached(broker, settings, 18, task)
    live, heads = await _heads(broker, settings), await _heads(broker, _of(settings))
    assert _identities(heads) == _identities(live)
    async with replay_log(broker, _of(settings)) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 18


@pytest.mark.parametrize("paused", [True, False])
async def test_live_versions_lost_in_a_pause_are_said_to_be(
    federation: str, caplog: pytest.LogCaptureFixture, paused: bool
) -> None:
    broker, settings, topics = MemoryBroker(partition_bytes=1 << 16), settings_for(federation), Topics(federation)
    await broker.create_topics(topics.specs(settings.topics))
    reading = broker.reader([topics.models], start="earliest"), broker.reader([topics.updates], start="earliest")
    async with Offload(1) as offload, reading[0] as models, reading[1] as updates, broker.producer() as producer:
        source = AcceptedUpdates(models, updates, LAYOUT.fragments(1), settings.wire, offload)
        for _ in range(10):
            await producer.send(topics.models, b"rubbish" * 1500, key=b"1")
        if paused:
            source.resumed_after_pause()
        assert [item async for item in source.receive(0.1, 0)] == []
    assert "live versions were deleted before they were read" in caplog.text
    assert ("during a pause" in caplog.text) == paused


def test_a_shadow_of_a_shadow_is_refused() -> None:
    with pytest.raises(ConfigError, match="is a shadow itself"):
        shadow_settings(_of(settings_for("f")), "again")


async def test_a_shadow_leaves_the_live_run_alone(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd", count=2)
    before = await _ends(broker, settings)
    async with _shadow(broker, settings) as task:
        await _reached(broker, settings, 2, task)
    assert await _ends(broker, settings) == before


async def _ends(broker: Broker, settings: Settings) -> dict[str, int]:
    found: dict[str, int] = {}
    for topic in topics_of(settings).names:
        async with broker.reader([topic], start="latest") as reader:
            found |= {f"{at.topic}-{at.partition}": end for at, end in (await reader.end_offsets()).items()}
    return found


async def test_fedasync_in_the_shadow(federation: str) -> None:
    broker = MemoryBroker()
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    own = settings_for(federation, aggregation={"strategy": "fedasync", "mixing": 0.5})
    async with running_from(broker, settings, initial()) as running, _shadow(broker, own) as task:
        await _reached(broker, settings, 0, task)
        for number in range(6):
            await _send(running, "a", number, max(0, number // 2 - 1))
            if number % 2:
                await running.version(number // 2 + 1)
        await _reached(broker, settings, 6, task)
    async with replay_log(broker, _of(settings)) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6
        staleness = [log.index.versions[number].head.manifest[0].staleness for number in range(1, 7)]
    # Live 0 is shadow 0, live 1 is shadow 2, live 2 is shadow 4.
    assert staleness == [0, 1, 2, 3, 2, 3]

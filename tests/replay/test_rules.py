"""The life of a rule: a crash in the middle changes nothing, and rebuild, what-if and shadow give the same bytes."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, connect
from llmos_stream.config import Settings
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.shadow import run_shadow, shadow_settings
from llmos_stream.replay.whatif import Change, WhatIf
from llmos_stream.runtime import Offload
from llmos_stream.testing import RunningFederation, WatchedLog, running_role
from llmos_stream.types import LOCAL_STEPS
from tests.conftest import KafkaNode
from tests.federation import federation_of
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import NUMEL, aggregator, settings_for, update

RULES: dict[str, dict[str, Any]] = {
    "fedavg": {"aggregation": {"strategy": "fedavg", "buffer_size": 3, "options": {"late": "drop"}}},
    "a quorum": {"aggregation": {"buffer_size": 4, "quorum": 3, "grace_seconds": 0.0}},
    "fadas": {
        "aggregation": {"buffer_size": 3},
        "server_optimizer": {"name": "fadas", "lr": 0.4, "options": {"delay": 1}},
    },
    "delayed nesterov": {
        "aggregation": {"buffer_size": 3},
        "server_optimizer": {
            "name": "delayed_nesterov",
            "lr": 0.7,
            "momentum": 0.9,
            "options": {"period": 3, "activation": 0.1},
        },
    },
    "fednova": {"aggregation": {"strategy": "fednova", "buffer_size": 3}, "staleness": {"kind": "polynomial"}},
}
VERSIONS = 7
EACH = 3


def _settings(federation: str, rule: str, **more: dict[str, Any]) -> Settings:
    return settings_for(federation, versions={"full_every": 4}, **RULES[rule], **more)


async def _send(running: RunningFederation, number: int, places: Sequence[int]) -> None:
    """Some of the updates that version `number + 1` is made of."""
    rounds = running.settings.aggregation.strategy == "fedavg"
    for place in places:
        client = "abc"[place]
        delta = torch.randn(NUMEL, generator=torch.Generator().manual_seed(number * EACH + place))
        base = number if rounds else max(0, number - (number + place) % 4)
        metrics = {LOCAL_STEPS: float(5 + 3 * place)} if place else {}
        records = update(
            delta,
            client_id=client,
            sequence=number,
            base_version=base,
            num_examples=10 + 7 * place,
            metrics=metrics,
        )
        await running.send(records, client)


async def _run(broker: Broker, settings: Settings, *, killed_in: int | None = None) -> list[bytes]:
    """Digests of the versions of a run whose aggregator is killed with a version half made, where that is asked for."""
    half = 0 if killed_in is None else EACH - 1
    async with aggregator(broker, settings) as running:
        for number in range(VERSIONS if killed_in is None else killed_in):
            await _send(running, number, range(EACH))
            await running.version(number + 1)
        if killed_in is not None:
            await _send(running, killed_in, range(half))
            await running.kill()
    if killed_in is not None:
        async with aggregator(broker, settings) as running:
            await _send(running, killed_in, range(half, EACH))
            await running.version(killed_in + 1)
            for number in range(killed_in + 1, VERSIONS):
                await _send(running, number, range(EACH))
                await running.version(number + 1)
    async with replay_log(broker, settings) as log:
        return [entry.head.weights_digest for entry in log.index.versions.values()]


async def _replays(broker: Broker, settings: Settings) -> None:
    """Rebuild and what-if give the published bytes."""
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * VERSIONS
        assert outcomes(await verdicts_of(log, range(5, 7))) == [RebuildOutcome.MATCH] * 2
        told = await WhatIf(log, Change(settings={"staleness": {}})).run(log.index.numbers)
        assert (told.digest, told.folded) == (told.original_digest, VERSIONS * EACH)
        assert not told.refused


async def _shadow_agrees(broker: Broker, settings: Settings, digests: list[bytes]) -> None:
    """A shadow under the same rule, beside a run that is killed in the middle of a version, makes the same ones."""
    live = settings.model_copy(update={"federation": settings.federation.model_copy(update={"name": "live"})})
    async with running_role(lambda *given: run_shadow(broker, live, "s", *given)) as role:
        assert await _run(broker, live, killed_in=2) == digests
        async with (
            Offload(1) as offload,
            WatchedLog(federation_of(broker, shadow_settings(live, "s"), offload), role.task) as shadow,
        ):
            await shadow.version(VERSIONS)
    async with replay_log(broker, shadow_settings(live, "s")) as log:
        found = [entry.head.weights_digest for entry in log.index.versions.values()]
        assert found == digests[-len(found) :]
        begun = log.index.numbers.start
        assert outcomes(await verdicts_of(log))[1:] == [RebuildOutcome.MATCH] * (VERSIONS - begun)


@pytest.mark.parametrize("rule", RULES)
async def test_a_crash_changes_nothing_and_all_replays_agree(federation: str, rule: str) -> None:
    broker = MemoryBroker()
    straight = await _run(broker, _settings(f"{federation}-a", rule))
    assert len(set(straight)) == VERSIONS + 1
    crashed = _settings(f"{federation}-b", rule)
    assert await _run(broker, crashed, killed_in=4) == straight
    await _replays(broker, crashed)


@pytest.mark.parametrize("rule", RULES)
async def test_a_shadow_makes_the_same_versions(federation: str, rule: str) -> None:
    broker = MemoryBroker()
    straight = await _run(broker, _settings(federation, rule))
    await _shadow_agrees(broker, _settings(federation, rule), straight)


@pytest.mark.kafka
@pytest.mark.parametrize(
    "rule", [pytest.param(rule, marks=[] if rule == "fedavg" else [pytest.mark.full]) for rule in RULES]
)
async def test_on_a_real_kafka_it_is_the_same(kafka: KafkaNode, federation: str, rule: str) -> None:
    expected = await _run(MemoryBroker(), _settings(federation, rule))
    async with connect(kafka.settings()) as broker:
        settings = _settings(federation, rule)
        assert await _run(broker, settings, killed_in=4) == expected
        await _replays(broker, settings)


@pytest.mark.parametrize("rule", RULES)
async def test_the_rule_is_recorded_with_its_options(federation: str, rule: str) -> None:
    broker = MemoryBroker()
    settings = _settings(federation, rule)
    await _run(broker, settings)
    async with replay_log(broker, settings) as log:
        head = log.index.versions[VERSIONS].head
        recorded: dict[str, Any] = dict(head.rule)
    for section, fields in RULES[rule].items():
        for name, value in fields.items():
            found = recorded[section][name]
            assert found == value if name != "options" else value.items() <= found.items()
    assert recorded["staleness"]["maximum"] == (0 if rule == "fedavg" else 1_000_000)
    assert ("quorum" in recorded["aggregation"]) == (rule == "a quorum")
    assert [item.steps for item in head.manifest] == ([9.5, 8.0, 11.0] if rule == "fednova" else [None] * 3)

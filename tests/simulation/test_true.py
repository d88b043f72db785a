"""The same updates in the same order give the same versions, simulated and in a real federation."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.roles.aggregator import Initial
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.simulation.run import Run
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.testing import running_federation
from llmos_stream.testing.updates import update_records
from llmos_stream.testing.virtual_time import LoopClock, run_in_virtual_time
from llmos_stream.types import UpdateHead
from tests.simulation.aids import devices

_FEEDBACK = {"name": "int4", "block": 64}
_RULES: dict[str, dict[str, Any]] = {
    "buffered": {"aggregation": {"buffer_size": 3, "deadline_seconds": 1e6}},
    "mixed": {"aggregation": {"strategy": "fedasync", "history": 30}, "codec": {"name": "float32"}},
    "adam": {
        "aggregation": {"buffer_size": 4, "deadline_seconds": 1e6},
        "server_optimizer": {"name": "adam", "lr": 0.02},
    },
    "robust": {
        "aggregation": {"strategy": "trimmed_mean", "buffer_size": 5, "deadline_seconds": 1e6},
        "codec": _FEEDBACK,
    },
    "sparse": {"aggregation": {"buffer_size": 2, "deadline_seconds": 1e6}, "codec": {"name": "topk", "fraction": 0.2}},
}
_LATE: dict[str, dict[str, Any]] = {
    "fednova": {"aggregation": {"strategy": "fednova", "buffer_size": 3, "deadline_seconds": 1e6}},
    "fadas": {
        "aggregation": {"buffer_size": 3, "deadline_seconds": 1e6},
        "server_optimizer": {"name": "fadas", "lr": 0.05},
    },
    "delayed nesterov": {
        "aggregation": {"buffer_size": 2, "deadline_seconds": 1e6},
        "server_optimizer": {"name": "delayed_nesterov", "momentum": 0.9, "options": {"period": 3}},
    },
}


@dataclass(frozen=True)
class _Sent:
    """An update, when it came, and which version was the newest then."""

    head: UpdateHead
    payload: Sequence[bytes]
    at: float
    version: int


@dataclass(frozen=True)
class _Simulated:
    initial: Initial
    sent: list[_Sent]
    digests: dict[int, str]


def _settings(federation: str, **sections: Any) -> RunSettings:
    return (
        devices(
            simulation={"updates": 30, "coded": True},
            federation={"name": federation},
            topics={"updates_partitions": 1},
            speed={"sigma": 1.5},
            **sections,
        )
        .arms[0]
        .settings
    )


def _simulated(settings: RunSettings) -> _Simulated:
    sent: list[_Sent] = []
    digests: dict[int, str] = {}

    def note(head: UpdateHead, payload: Sequence[bytes] | None, now: float) -> None:
        assert payload is not None
        digests[run.aggregator.version] = run.aggregator.digest()
        sent.append(_Sent(head, payload, now, run.aggregator.version))

    run = Run(settings, 4, observer=note)
    initial = Initial(run.layout, run.aggregator.weights.clone())
    run.go()
    digests[run.aggregator.version] = run.aggregator.digest()
    assert len(digests) > 5
    assert any(item.head.base_version < item.version for item in sent)
    return _Simulated(initial, sent, digests)


async def _real(found: _Simulated, settings: Settings, broker: Broker, clock: Clock = SYSTEM_CLOCK) -> dict[int, str]:
    """The digests of a real aggregator's versions. Updates are sent when they are due by `clock`, if it is virtual."""
    digests = {}
    async with running_federation(found.initial, settings, broker, clock=clock) as running:
        begun = clock.monotonic()
        for item in found.sent:
            if clock is not SYSTEM_CLOCK:
                await clock.sleep(max(0.0, begun + item.at - clock.monotonic()))
            await running.version(item.version)
            await running.send(update_records(item.head, item.payload))
        for number in found.digests:
            digests[number] = (await running.version(number)).head.weights_digest.hex()
    return digests


@pytest.mark.long_on_kafka
@pytest.mark.parametrize("rule", _RULES)
async def test_a_real_aggregator_makes_the_versions_that_a_simulated_one_made(
    broker: Broker, federation: str, rule: str
) -> None:
    settings = _settings(federation, **_RULES[rule])
    found = _simulated(settings)
    assert await _real(found, settings, broker) == found.digests


@pytest.mark.parametrize("rule", _LATE)
async def test_so_does_one_whose_rule_is_made_for_late_or_unequal_updates(federation: str, rule: str) -> None:
    settings = _settings(federation, **_LATE[rule])
    found = _simulated(settings)
    assert await _real(found, settings, MemoryBroker()) == found.digests


def test_so_does_one_that_adapts_to_who_takes_part_and_to_the_time() -> None:
    """The number of updates in a version follows from when they come; both are told by a virtual clock."""
    settings = _settings(
        "adapting",
        aggregation={"buffer_size": None, "deadline_seconds": 3.0},
        population={"clients": 6, "concurrency": None},
    )
    found = _simulated(settings)
    assert len({item.version for item in found.sent}) > 5

    async def main(clock: LoopClock) -> dict[int, str]:
        async with asyncio.timeout(1e6):
            return await _real(found, settings, MemoryBroker(), clock)

    assert run_in_virtual_time(main) == found.digests

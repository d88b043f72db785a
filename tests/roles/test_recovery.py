"""An aggregator that starts finds its state in the log, on both brokers: it goes on as if it had never stopped."""

from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, Topics, connect
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.log import Pointer
from llmos_stream.log.control import EVERYBODY
from llmos_stream.log.events import emit
from llmos_stream.log.index import version_index
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator import Initial
from llmos_stream.roles.aggregator.recovery import fetch_version, recover
from llmos_stream.runtime import Offload
from llmos_stream.runtime.clock import SystemClock
from llmos_stream.testing import RunningFederation, running_federation
from llmos_stream.types import EventKind
from tests.conftest import KafkaNode
from tests.federation import event, federation_of
from tests.roles.aids import aggregator, control_of, delta_of, settings_for, update

RULES = {
    "momentum": {"server_optimizer": {"name": "sgd", "momentum": 0.9}},
    "adam": {"server_optimizer": {"name": "adam", "lr": 0.1}},
    "yogi": {"server_optimizer": {"name": "yogi", "lr": 0.1}},
    "fedasync": {"aggregation": {"strategy": "fedasync", "mixing": 0.5}},
}


async def _run(broker: Broker, settings: Settings, restarts: bool) -> bytes:
    """Six updates, two of them on old versions; the digest of the last version."""
    bases = [0, 0, 1, 3, 2, 5]
    sent = 0
    digest = b""
    for share in [1, 2, 3] if restarts else [6]:
        async with aggregator(broker, settings) as running:
            for _ in range(share):
                delta = delta_of(0.1 * (sent + 1))
                delta[::3] *= -1.7
                await running.send(update(delta, sequence=sent, base_version=bases[sent], num_examples=sent + 1))
                sent += 1
                digest = (await running.version(sent)).head.weights_digest
            if restarts:
                await running.kill()
    return digest


@pytest.mark.parametrize("full_every", [4, pytest.param(1, marks=pytest.mark.full)])
@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
async def test_a_crash_changes_nothing_of_what_is_computed(
    broker: Broker, federation: str, rule: dict[str, dict[str, Any]], full_every: int
) -> None:
    """Nor in the middle of a chain of deltas, which goes on where it was."""
    rule = rule | {"versions": {"full_every": full_every}}
    straight = await _run(broker, settings_for(f"{federation}-a", **rule), restarts=False)
    assert await _run(broker, settings_for(f"{federation}-b", **rule), restarts=True) == straight


async def test_another_optimiser_starts_anew_and_says_so(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with aggregator(broker, settings_for(federation, **RULES["momentum"])) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    async with aggregator(broker, settings_for(federation)) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        version = await running.version(2)
    assert torch.equal(version.weights, delta_of(2.0))
    assert "moments start anew" in caplog.text


async def _evaluate(running: RunningFederation, *values: float, first: int = 0) -> None:
    async with running.broker.producer() as producer:
        for version, value in enumerate(values, first):
            measured = event(EventKind.EVALUATION, "evaluator", version=version, metrics={"accuracy": value})
            await emit(producer, running.topics.evaluations, measured)


async def test_patience_counts_on_through_restarts(broker: Broker, federation: str) -> None:
    """Also with what was evaluated while there was no aggregator."""
    settings = settings_for(federation, stop={"patience": 4})
    async with aggregator(broker, settings) as running:
        for number in range(4):
            await running.send(update(delta_of(1.0), sequence=number, base_version=number))
            await running.version(number + 1)
        await _evaluate(running, 0.5, 0.4)
        await running.send(update(delta_of(1.0), sequence=4, base_version=4))
        await running.version(5)
        await running.kill()
    await _evaluate(running, 0.3, first=2)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=5, base_version=5))
        await running.version(6)
        await running.kill()
    async with aggregator(broker, settings) as running:
        await _evaluate(running, 0.3, 0.3, first=3)
        end = await running.task
    assert end is not None
    assert end.reason == "patience"
    assert "0.5 at version 0" in end.detail


class _Later(SystemClock):
    """Time as it is two hours from now."""

    def time_ms(self) -> int:
        return super().time_ms() + 7_200_000


async def test_time_counts_from_the_start_of_the_run(broker: Broker, federation: str) -> None:
    """Not from the start of this process: nobody would get to the end of a run whose aggregator is restarted often."""
    async with aggregator(broker, settings_for(federation)) as running:
        await running.version(0)
        await running.kill()
    async with aggregator(broker, settings_for(federation, stop={"max_seconds": 5000.0}), _Later()) as running:
        end = await running.task
    assert end is not None
    assert end.reason == "max_seconds"


async def _offset(running: RunningFederation, version: int) -> int:
    async with version_index(running.broker, running.topics.models) as index:
        found = await index.find(version)
    assert found is not None
    return found.offset


async def test_what_recovery_needs_of_a_chain_begins_with_its_full_version(broker: Broker, federation: str) -> None:
    maximum = {"kind": "constant", "maximum": 3}
    settings = settings_for(federation, **RULES["fedasync"], staleness=maximum, versions={"full_every": 5})
    async with aggregator(broker, settings) as running:
        for sequence in range(12):
            await running.send(update(delta_of(1.0), sequence=sequence, base_version=sequence))
            await running.version(sequence + 1)
        control = await control_of(running)
        fifth, tenth = await _offset(running, 5), await _offset(running, 10)
    checkpoint = control.checkpoint_of(12)
    assert checkpoint is not None
    assert checkpoint.bases == fifth  # what version 9 stands on
    assert control.latest is not None
    assert control.latest.full == Pointer(10, 0, tenth)


async def test_what_recovery_needs_does_not_grow_with_the_history(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, **RULES["fedasync"], staleness={"kind": "constant", "maximum": 3})
    async with aggregator(broker, settings) as running:
        for sequence in range(12):
            await running.send(update(delta_of(1.0), sequence=sequence, base_version=sequence))
            await running.version(sequence + 1)
        control = await control_of(running, sequences_of=EVERYBODY)
        ninth = await _offset(running, 9)
    checkpoint = control.checkpoint_of(12)
    assert checkpoint is not None
    assert checkpoint.bases == ninth  # of twelve versions, three back
    assert len(control.sequences) == 1


@pytest.mark.full
@pytest.mark.kafka
async def test_a_version_of_a_hundred_megabytes_is_one_transaction(kafka: KafkaNode, federation: str) -> None:
    """At Kafka's default limits and our default time-outs, moments included."""
    weights = torch.randn(25_000_000, generator=torch.Generator().manual_seed(0))
    layout = Layout.of({"w": weights})
    settings = settings_for(federation, server_optimizer={"name": "adam"})
    topics, start = Topics(federation), Initial(layout, weights)
    async with connect(kafka.settings()) as broker, Offload(2) as offload:
        async with running_federation(start, settings, broker, patience_seconds=100.0) as running:
            await running.events("version_published")
            control = await control_of(running)
        assert control.latest is not None
        here = federation_of(broker, settings, offload)
        newest = await fetch_version(here, control.latest)
        found = await recover(here, local_rule(settings), control, control.latest, newest)
        await broker.delete_topics([topics.models, topics.snapshots])
    assert torch.equal(newest.weights, weights)
    assert set(found.moments) == {"first_moment", "second_moment"}
    assert newest.head.payload_size > 80_000_000

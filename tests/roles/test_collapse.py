"""A model that collapses: it is told, the federation pauses, or a version goes out that equals the best one."""

import asyncio
import contextlib
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.log.events import emit
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import rolled_back_to
from llmos_stream.replay.audit import audit
from llmos_stream.replay.rebuild import Rebuilder, RebuildOutcome
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation
from llmos_stream.types import Event, EventKind, Role
from tests.roles.aids import aggregator, delta_of, settings_for, update

_SECONDS = 30.0


def _settings(on_collapse: str, **sections: Any) -> Settings:
    guard = {"on_collapse": on_collapse, "loss_factor": 3.0}
    return settings_for("guarded", guard=guard, **{"versions": {"full_every": 8}, **sections})


async def _evaluate(running: RunningFederation, version: int, loss: float | None) -> None:
    data = {"version": version, "metrics": {"loss": loss, "accuracy": 0.5}}
    async with running.broker.producer() as producer:
        await emit(producer, running.topics.evaluations, Event(EventKind.EVALUATION, Role.EVALUATOR, 1, data))


async def _make(running: RunningFederation, first: int, last: int) -> None:
    """Make the versions from `first` to `last`, each of two updates on the one before."""
    for number in range(first, last + 1):
        for client in ("a", "b"):
            records = update(delta_of(0.1 * number), client_id=client, sequence=number, base_version=number - 1)
            await running.send(records, client)
        await running.version(number)


async def _collapse(running: RunningFederation, loss: float | None = None) -> Event:
    await _make(running, 1, 4)
    for version, good in ((1, 2.0), (2, 1.0), (3, 1.2)):
        await _evaluate(running, version, good)
    await _evaluate(running, 4, loss)
    found = await running.events("model_collapsed", 1)
    return found[0]


@pytest.mark.parametrize("loss", [None, 3.5])
async def test_it_is_told_and_nothing_else(loss: float | None) -> None:
    async with MemoryBroker() as broker, aggregator(broker, _settings("none", aggregation={"buffer_size": 2})) as run:
        event = await _collapse(run, loss)
        assert event.data == {
            "version": 4,
            "loss": loss,
            "limit": 3.0,
            "best_version": 2,
            "best_loss": 1.0,
            "action": "none",
        }
        await _make(run, 5, 5)


async def test_the_federation_pauses_and_can_be_resumed() -> None:
    async with MemoryBroker() as broker, aggregator(broker, _settings("pause", aggregation={"buffer_size": 2})) as run:
        await _collapse(run)
        async with Offload(1) as offload:
            federation = Federation(broker, run.topics, run.settings.wire, offload, Shutdown())
            async with federation.control() as control:
                assert control.paused


async def _back(broker: Broker, settings: Settings) -> None:
    """Collapse at version 4, with one update of version 5 under way; 5 is made first, then 6 goes back to 2."""
    async with aggregator(broker, settings) as running:
        await _make(running, 1, 4)
        await running.until(lambda: REGISTRY.get_sample_value("llmos_buffered_updates") == 0)
        await running.send(update(delta_of(0.5), client_id="a", sequence=5, base_version=4), "a")
        await running.until(lambda: REGISTRY.get_sample_value("llmos_buffered_updates") == 1)
        for version, loss in ((1, 2.0), (2, 1.0), (3, 1.2), (4, None)):
            await _evaluate(running, version, loss)
        await running.events("model_collapsed", 1)
        await running.send(update(delta_of(0.5), client_id="b", sequence=5, base_version=4), "b")
        back = await running.version(6)
        assert rolled_back_to(back.head) == 2
        assert (back.head.parent, back.head.manifest) == (5, ())
        await _evaluate(running, 5, None)  # heard late, and of before
        late = update(delta_of(9.0), client_id="a", sequence=6, base_version=5)
        await running.send(late, "a")
        assert [entry["reason"] for entry in await running.quarantined(1)] == ["too_stale"]


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"buffer_size": 2}},
        {"aggregation": {"buffer_size": 2}, "server_optimizer": {"momentum": 0.9}},
        {"aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "adam"}},
    ],
    ids=["sgd", "momentum", "adam"],
)
async def test_a_version_goes_out_that_equals_the_best_one_and_replays(sections: dict[str, Any]) -> None:
    settings = _settings("rollback", **sections)
    async with MemoryBroker() as broker:
        await _back(broker, settings)
        async with aggregator(broker, settings) as running:  # another one goes on from there
            for number in (7, 8):
                for client in ("a", "b"):
                    records = update(delta_of(0.1), client_id=client, sequence=10 + number, base_version=number - 1)
                    await running.send(records, client)
                await running.version(number)
        async with Offload(2) as offload, contextlib.AsyncExitStack() as stack:
            federation = Federation(broker, running.topics, settings.wire, offload, Shutdown())
            log = await stack.enter_async_context(ReplayLog(federation))
            async with asyncio.timeout(_SECONDS):
                verdicts = [verdict async for verdict in Rebuilder(log, log.index.numbers).verdicts()]
                alone = [verdict async for verdict in Rebuilder(log, range(6, 9)).verdicts()]
            assert [verdict.outcome for verdict in verdicts] == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 8
            assert [verdict.outcome for verdict in alone] == [RebuildOutcome.MATCH] * 3
            assert torch.equal(await log.weights(6), await log.weights(2))
            assert (await audit(log, 6)).items == []

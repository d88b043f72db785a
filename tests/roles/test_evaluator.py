"""The evaluator over a chain of deltas: which versions it measures, with which weights, and that it keeps its place."""

import asyncio
import threading
from collections.abc import Iterable
from typing import Any

import pytest

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.log import Pointer
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, retry
from llmos_stream.testing import FaultyBroker, RunningFederation
from llmos_stream.training import Task, load_task
from llmos_stream.training.batches import Batch
from llmos_stream.training.model_evaluator import ModelEvaluator
from llmos_stream.types import Event
from llmos_stream.wire import load_event
from tests.federation import decoded_versions
from tests.losing import LosesVersions
from tests.replay.aids import running_from
from tests.roles.aids import control_of, publish_random, settings_for

_SECONDS = 60.0


def _settings(federation: str, **sections: Any) -> Settings:
    return settings_for(federation, task={"entry": "blobs"}, **{"versions": {"full_every": 4}, **sections})


def _task(settings: Settings) -> tuple[Task, Initial]:
    task = load_task(settings.task, settings.client)
    return task, initial_of(task, settings)


async def _measured(running: RunningFederation, count: int) -> list[tuple[int, dict[str, float]]]:
    found = await running.events("evaluation", count)
    return [(event.data["version"], event.data["metrics"]) for event in found]  # type: ignore[misc]


async def _all_measured(running: RunningFederation) -> list[tuple[int, dict[str, float]]]:
    found: list[Event] = []
    async with running.broker.reader([running.topics.evaluations], start="earliest") as reader:
        while await reader.lag() > 0:
            found += [load_event(record.value or b"") for record in await reader.poll(_SECONDS)]
    return [(event.data["version"], event.data["metrics"]) for event in found]  # type: ignore[misc]


async def _expected(running: RunningFederation, settings: Settings, task: Task) -> dict[int, dict[str, float]]:
    judge = ModelEvaluator(task, settings.task, settings.evaluator.batch_size)
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        return {
            version.head.number: judge.evaluate(version.head.number, version.layout, version.weights).metrics
            async for version in decoded_versions(reader, settings.wire)
        }


async def _newest(running: RunningFederation) -> Pointer:
    control = await control_of(running)
    assert control.latest is not None
    return control.latest


async def _oldest_offset(running: RunningFederation) -> int:
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        return await reader.position(reader.partitions[0])


async def test_one_that_starts_in_the_middle_of_a_chain_measures_from_the_newest_on(
    broker: Broker, federation: str
) -> None:
    settings = _settings(federation, stop={"max_versions": 8})
    task, initial = _task(settings)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        await publish_random(running, range(1, 7))
        evaluating = asyncio.create_task(run_evaluator(broker, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        await publish_random(running, range(7, 9))
        last = await evaluating
        found = await _measured(running, 3)
        expected = await _expected(running, settings, task)
    assert last is not None
    assert last.version == 8
    assert [version for version, _ in found] == [6, 7, 8]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)
    assert len({str(expected[version]) for version in (6, 7, 8)}) == 3


@pytest.mark.parametrize("last", [7, 8], ids=["a delta", "a full version"])
async def test_the_last_version_is_measured_with_its_own_weights_where_every_third_is(
    broker: Broker, federation: str, last: int
) -> None:
    settings = _settings(federation, evaluator={"every": 3}, stop={"max_versions": last})
    task, initial = _task(settings)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        evaluating = asyncio.create_task(run_evaluator(broker, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        await publish_random(running, range(1, last + 1))
        await evaluating
        found = await _measured(running, 4)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [0, 3, 6, last]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)
    assert len({metrics["loss"] for metrics in expected.values()}) == last + 1  # no other's weights would do


async def test_one_that_retention_overtook_goes_on_with_the_newest_chain(
    federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(federation, stop={"max_versions": 42}, topics={"models_retention_gib": 4e-5})
    task, initial = _task(settings)
    test_batches, begun, go_on = task.test_batches, threading.Event(), threading.Event()

    def held_up(batch_size: int) -> Iterable[Batch] | None:
        begun.set()
        assert go_on.wait(_SECONDS)
        return test_batches(batch_size)

    async with running_from(MemoryBroker(), settings, initial) as running, Offload(2) as offload:
        evaluating = asyncio.create_task(run_evaluator(running.broker, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        monkeypatch.setattr(task, "test_batches", held_up)
        await publish_random(running, range(1, 2))
        assert await asyncio.to_thread(begun.wait, _SECONDS)
        at_one = await _newest(running)
        await publish_random(running, range(2, 42))
        newest, oldest = await _newest(running), await _oldest_offset(running)
        go_on.set()
        assert at_one.version == 1
        assert at_one.offset + 2 < oldest <= newest.beginning.offset  # version 2 is gone, the newest chain is not
        await _measured(running, 4)
        await publish_random(running, range(42, 43))
        await evaluating
        found = await _measured(running, 5)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [0, 1, 40, 41, 42]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found[2:])


@pytest.mark.parametrize("lost_at", [{3}, {9}, {3, 5, 14}])
async def test_one_that_loses_the_broker_keeps_its_place(
    federation: str, monkeypatch: pytest.MonkeyPatch, lost_at: set[int]
) -> None:
    """Also while it reads what the first version stands on."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    broker = MemoryBroker()
    settings = _settings(federation, versions={"full_every": 100}, stop={"max_versions": 9})
    task, initial = _task(settings)
    losing = LosesVersions(lost_at)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        await publish_random(running, range(1, 7))
        evaluating = asyncio.create_task(
            run_evaluator(FaultyBroker(broker, losing), settings, task, offload, Shutdown())
        )
        await _measured(running, 1)
        await publish_random(running, range(7, 10))
        await evaluating
        found = await _measured(running, 4)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [6, 7, 8, 9]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)
    assert losing.found > max(lost_at)


@pytest.mark.parametrize("full_every", [4, 100])
@pytest.mark.parametrize("lost_at", [1, 2, 3])
async def test_what_came_before_the_first_version_was_reached_is_measured_too(
    federation: str, monkeypatch: pytest.MonkeyPatch, full_every: int, lost_at: int
) -> None:
    """Lost on the way to version 6; back again there are three more, some of them on another chain if it is short."""
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    broker = MemoryBroker()
    settings = _settings(federation, versions={"full_every": full_every}, stop={"max_versions": 9})
    task, initial = _task(settings)
    losing = LosesVersions({lost_at})
    losing.silence_over.clear()
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        await publish_random(running, range(1, 7))
        evaluating = asyncio.create_task(
            run_evaluator(FaultyBroker(broker, losing), settings, task, offload, Shutdown())
        )
        await losing.lost.wait()
        await publish_random(running, range(7, 10))
        losing.silence_over.set()
        await evaluating
        found = await _all_measured(running)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [6, 7, 8, 9]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)


async def test_one_that_was_there_before_the_first_version_measures_all_of_them(
    federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    broker = MemoryBroker()
    settings = _settings(federation, stop={"max_versions": 5})
    task, initial = _task(settings)
    losing = LosesVersions({1})
    losing.silence_over.clear()
    await broker.create_topics(Topics(federation).specs(settings.topics))
    async with Offload(2) as offload:
        evaluating = asyncio.create_task(
            run_evaluator(FaultyBroker(broker, losing), settings, task, offload, Shutdown())
        )
        await losing.polled.wait()
        async with running_from(broker, settings, initial) as running:
            await losing.lost.wait()
            await publish_random(running, range(1, 6))
            losing.silence_over.set()
            await evaluating
            found = await _all_measured(running)
    assert [version for version, _ in found] == list(range(6))

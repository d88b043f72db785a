"""The evaluator over a chain of deltas: which versions it measures, with which weights, and that it keeps its place."""

import asyncio
from types import TracebackType
from typing import Any, Self

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Record
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.roles import Initial, Judge, decoded_versions, initial_of, run_evaluator
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import Task, load_task
from tests.replay.aids import running_from
from tests.roles.aids import Running, settings_for, update


class _Unsteady:
    """A reader of `<f>.models` that gives one record at a time and loses the broker at the polls that are named."""

    def __init__(self, reader: Any, polls: list[int], lost_at: set[int]) -> None:
        self._reader = reader
        self._polls = polls
        self._lost_at = lost_at

    async def __aenter__(self) -> Self:
        await self._reader.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._reader.__aexit__(kind, error, trace)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        found: list[Record] = await self._reader.poll(timeout_seconds, 1)
        if found:
            self._polls.append(found[0].offset)
            if len(self._polls) in self._lost_at:
                raise BrokerUnavailable("lost")
        return found


class _UnsteadyBroker:
    def __init__(self, broker: Broker, lost_at: set[int]) -> None:
        self._broker = broker
        self._lost_at = lost_at
        self.polls: list[int] = []
        """Offsets of the records of `<f>.models` that were read."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def reader(self, topics: list[str], **options: Any) -> Any:
        reader = self._broker.reader(topics, **options)
        return _Unsteady(reader, self.polls, self._lost_at) if topics[0].endswith(".models") else reader


def _settings(federation: str, **sections: Any) -> Settings:
    return settings_for(federation, task={"entry": "blobs"}, **{"versions": {"full_every": 4}, **sections})


def _task(settings: Settings) -> tuple[Task, Initial]:
    task = load_task(settings.task, settings.client)
    return task, initial_of(task, settings)


async def _publish(running: Running, layout: Layout, numbers: range) -> None:
    for number in numbers:
        delta = torch.randn(layout.numel, generator=torch.Generator().manual_seed(number))
        records = update(delta, sequence=number, base_version=number - 1, layout_digest=layout.digest)
        await running.send(records)
        await running.version(number)


async def _measured(running: Running, count: int) -> list[tuple[int, dict[str, float]]]:
    found = await running.events("evaluation", count)
    return [(event.data["version"], event.data["metrics"]) for event in found]  # type: ignore[misc]


async def _expected(running: Running, settings: Settings, task: Task) -> dict[int, dict[str, float]]:
    judge = Judge(task, settings)
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        return {
            version.head.number: judge.evaluate(version).metrics
            async for version in decoded_versions(reader, settings.wire)
        }


async def test_one_that_starts_in_the_middle_of_a_chain_measures_from_the_newest_on(
    broker: Broker, federation: str
) -> None:
    settings = _settings(federation, stop={"max_versions": 8})
    task, initial = _task(settings)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        await _publish(running, initial.layout, range(1, 7))
        evaluating = asyncio.create_task(run_evaluator(broker, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        await _publish(running, initial.layout, range(7, 9))
        last = await evaluating
        found = await _measured(running, 3)
        expected = await _expected(running, settings, task)
    assert last is not None
    assert last.version == 8
    assert [version for version, _ in found] == [6, 7, 8]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)
    assert len({str(expected[version]) for version in (6, 7, 8)}) == 3


async def test_the_last_version_is_measured_with_its_own_weights_where_every_third_is(
    broker: Broker, federation: str
) -> None:
    settings = _settings(federation, evaluator={"every": 3}, stop={"max_versions": 8})
    task, initial = _task(settings)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        evaluating = asyncio.create_task(run_evaluator(broker, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        await _publish(running, initial.layout, range(1, 9))
        await evaluating
        found = await _measured(running, 4)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [0, 3, 6, 8]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)


@pytest.mark.parametrize("lost_at", [{3}, {9}, {3, 5, 14}])
async def test_one_that_loses_the_broker_keeps_its_place(federation: str, lost_at: set[int]) -> None:
    """Also while it reads what the first version stands on."""
    broker = MemoryBroker()
    settings = _settings(federation, versions={"full_every": 100}, stop={"max_versions": 9})
    task, initial = _task(settings)
    unsteady: Any = _UnsteadyBroker(broker, lost_at)
    async with running_from(broker, settings, initial) as running, Offload(2) as offload:
        await _publish(running, initial.layout, range(1, 7))
        evaluating = asyncio.create_task(run_evaluator(unsteady, settings, task, offload, Shutdown()))
        await _measured(running, 1)
        await _publish(running, initial.layout, range(7, 10))
        await evaluating
        found = await _measured(running, 4)
        expected = await _expected(running, settings, task)
    assert [version for version, _ in found] == [6, 7, 8, 9]
    assert all(metrics == pytest.approx(expected[version]) for version, metrics in found)
    assert len(unsteady.polls) > max(lost_at)

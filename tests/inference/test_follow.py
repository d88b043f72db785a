"""A served federation: versions come from a real aggregator through the log, and requests go on meanwhile."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerUnavailable, ConfigError
from llmos_stream.inference.model_pool import load_model, making
from llmos_stream.log.versions import Version
from llmos_stream.runtime import BROKER, retry
from llmos_stream.testing import Call, FaultyBroker, RunningFederation, until
from llmos_stream.training import Task, load_task
from tests.federation import decoded_versions
from tests.inference.following import Serving, promote_in_log, serving_of, settings_of, task_of
from tests.replay.aids import running_from
from tests.roles.aids import publish_random, settings_for

_VERSIONS = 20


async def _expected(running: RunningFederation, settings: Settings, task: Task, inputs: Tensor) -> Mapping[int, Tensor]:
    """What each version of the log gives for `inputs`."""
    found = {}
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        async for version in decoded_versions(reader, settings.wire):
            with torch.no_grad():
                found[version.head.number] = load_model(making(task, settings.task.share), version).model(inputs)
    return found


@pytest.mark.long_on_kafka
async def test_twenty_versions_come_under_load_and_every_answer_is_that_of_the_version_it_names(
    broker: Broker, federation: str
) -> None:
    settings = settings_of(federation, inference={"canary": 0.3, "max_batch": 8, "max_delay_ms": 0.5})
    task, initial = task_of(settings)
    inputs, _ = next(iter(task.test_batches(16) or ()))
    assert isinstance(inputs, Tensor)
    answers: list[tuple[int, int, list[float]]] = []  # row asked, version, outputs
    done = asyncio.Event()

    async def ask(serving: Serving, begin: int) -> None:
        row = begin
        while not done.is_set():
            row = (row + 1) % len(inputs)
            answer = await serving.http.post("/v1/predict", json={"inputs": inputs[row : row + 1].tolist()})
            assert answer.status_code == 200, answer.text
            said = answer.json()
            answers.append((row, said["version"], said["outputs"][0]))

    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await until(lambda: serving.pool.newest == 0)
        assert serving.health.ready
        asking = [asyncio.create_task(ask(serving, begin)) for begin in range(8)]
        for number in range(1, _VERSIONS + 1):
            await publish_random(running, [number])
            await until(lambda number=number: serving.pool.newest == number)  # type: ignore[misc]
            if number == 8:
                await promote_in_log(running, number)
                await until(lambda: serving.pool.promoted == 8)
        seen = len(answers)
        await until(lambda: len(answers) > seen + 50 or any(one.done() for one in asking))
        done.set()
        await asyncio.gather(*asking)
        expected = await _expected(running, settings, task, inputs)
    for row, version, outputs in answers:
        torch.testing.assert_close(torch.tensor(outputs), expected[version][row], rtol=1e-4, atol=1e-4)
    versions = {version for _, version, _ in answers}
    assert {0, 8, _VERSIONS} <= versions
    assert len(versions) > _VERSIONS // 2
    apart = [float((expected[number] - expected[number + 1]).abs().amin(dim=1).min()) for number in range(_VERSIONS)]
    assert min(apart) > 1e-3  # so that no other version's answer would have passed


async def test_a_promoted_version_of_long_ago_serves_after_a_restart(federation: str) -> None:
    settings = settings_of(federation, inference={"keep": 1})
    task, initial = task_of(settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running:
        await publish_random(running, range(1, 8))
        await promote_in_log(running, 2)
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: serving.pool.newest == 7)
            models = (await serving.http.get("/v1/models")).json()
            assert (models["serving"], models["why"], models["promoted"]) == (2, "promoted", 2)
            assert [one["version"] for one in models["models"]] == [2, 7]
            await promote_in_log(running, 7)
            await until(lambda: serving.pool.promoted == 7)
            await promote_in_log(running, 99)  # nobody has it: what served goes on
            await promote_in_log(running, 5)
            await until(lambda: serving.pool.promoted == 5)


async def test_a_version_that_nobody_can_have_is_not_served_and_nothing_else_suffers(
    federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings = settings_of(federation)
    task, initial = task_of(settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await until(lambda: serving.pool.newest == 0)
        await promote_in_log(running, 99)
        await until(lambda: "version 99 is promoted and cannot be had" in caplog.text)
        await publish_random(running, [1])
        await until(lambda: serving.pool.newest == 1)
        assert serving.pool.promoted is None
        assert caplog.text.count("cannot be had") == 1


async def _lost(_: Call) -> Any:
    raise BrokerUnavailable("nobody answers")


async def test_it_goes_on_answering_without_a_broker_and_catches_up_afterwards(
    federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    settings = settings_of(federation)
    task, initial = task_of(settings)
    memory = MemoryBroker()
    unsteady = FaultyBroker(memory)
    there = unsteady.around
    async with running_from(memory, settings, initial) as running, serving_of(unsteady, settings, task) as serving:
        await until(lambda: serving.pool.newest == 0)
        unsteady.around = _lost
        await until(lambda: not serving.health.ready)
        assert set(serving.health.missing) == {BROKER}
        answer = await serving.http.post("/v1/predict", json={"inputs": [[0.0] * 16]})
        assert answer.json()["version"] == 0
        await publish_random(running, [1])
        assert serving.pool.newest == 0
        unsteady.around = there
        await until(lambda: serving.pool.newest == 1)
        assert serving.health.ready


async def test_a_task_of_another_model_ends_it(federation: str) -> None:
    settings = settings_of(federation)
    _, initial = task_of(settings)
    broker = MemoryBroker()
    other = load_task(settings_for(federation, task={"entry": "digits"}).task, settings.client)
    async with running_from(broker, settings, initial):
        with pytest.raises(ConfigError, match="not the federation's"):
            async with serving_of(broker, settings, other) as serving:
                await asyncio.wait([serving.following])


async def test_what_is_built_is_in_eval_mode_and_a_copy(federation: str) -> None:
    settings = settings_of(federation)
    task, initial = task_of(settings)
    broker = MemoryBroker()
    found: list[Version] = []
    async with (
        running_from(broker, settings, initial) as running,
        running.broker.reader([running.topics.models], start="earliest") as reader,
    ):
        found += [version async for version in decoded_versions(reader, settings.wire)]
    model = load_model(making(task, settings.task.share), found[0]).model
    before = [parameter.clone() for parameter in model.parameters()]
    found[0].weights.zero_()
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(one, other) for one, other in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("kind", ["control", "models"])
async def test_what_is_held_goes_on_serving_when_a_topic_is_deleted(
    federation: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker, settings = MemoryBroker(), settings_of(federation)
    task, initial = task_of(settings)
    inputs, _ = next(iter(task.test_batches(1) or ()))
    async with running_from(broker, settings, initial) as running:
        await publish_random(running, [1])
        await running.stop()
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: serving.pool.newest == 1)
            await broker.delete_topics([f"{federation}.{kind}"])
            if kind == "models":  # nobody reads there before there is something to read
                await promote_in_log(running, 0)
            await until(lambda: not serving.health.ready)
            assert f"there is no topic {federation}.{kind}" in serving.health.missing[BROKER]
            assert isinstance(inputs, Tensor)
            answer = await serving.http.post("/v1/predict", json={"inputs": inputs.tolist()})
            assert answer.json()["version"] == 1
    assert "goes on serving, and no other version comes until a restart" in caplog.text

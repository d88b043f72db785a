"""What sites measure on their own data: that clients tell it, that it can end a run, and what strangers can do."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError, ConfigError
from llmos_stream.log.events import emit
from llmos_stream.log.stream import value_of
from llmos_stream.roles.aggregator import Initial, initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.batches import Batch
from llmos_stream.training.local import evaluate
from llmos_stream.training.model_evaluator import ModelEvaluator
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import Event, EventKind, Role
from llmos_stream.wire import load_event
from tests.federation import decoded_versions
from tests.replay.aids import running_from
from tests.roles.aids import aggregator, control_of, delta_of, settings_for, update


def _settings(federation: str, **sections: Any) -> Settings:
    given: dict[str, Any] = {
        "task": {"entry": "blobs"},
        "client": {"id": "a", "wait_seconds": 10.0},
        "stop": {"max_versions": 3},
    }
    return settings_for(federation, **(given | sections))


def _task(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Task, Initial]:
    """A task whose validation data are the first of its test batches."""
    task = load_task(settings.task, settings.client)
    held_back = [*(task.test_batches(50) or ())][:2]

    def validation_batches() -> Iterable[Batch]:
        return held_back

    monkeypatch.setattr(task, "validation_batches", validation_batches, raising=False)
    return task, initial_of(task, settings)


async def _take_part(broker: Broker, settings: Settings, task: Task) -> int:
    async with Offload(2) as offload:
        with ClientState("a", None) as state:
            return await run_client(broker, settings, task, state, offload, Shutdown())


async def _told(running: RunningFederation) -> list[tuple[bytes | None, Event]]:
    """All that the topic of evaluations holds, with the keys."""
    found: list[tuple[bytes | None, Event]] = []
    async with running.broker.reader([running.topics.evaluations], start="earliest") as reader:
        while await reader.lag() > 0:
            found += [(record.key, load_event(value_of(record))) for record in await reader.poll(1.0)]
    return found


@pytest.mark.parametrize(("every", "expected"), [(1, [0, 1, 2, 3]), (2, [0, 2, 3]), (0, [])])
async def test_a_client_measures_versions_on_its_own_data_and_the_last_one_too(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch, every: int, expected: list[int]
) -> None:
    settings = _settings(federation, client={"id": "a", "wait_seconds": 10.0, "evaluate_every": every})
    task, initial = _task(settings, monkeypatch)
    async with running_from(broker, settings, initial) as running:
        assert await _take_part(broker, settings, task) >= 3
        found = await _told(running)
        monkeypatch.setattr(task, "test_batches", lambda _: task.validation_batches())
        judge = ModelEvaluator(task, settings.task, 50)
        async with broker.reader([running.topics.models], start="earliest") as reader:
            measured = {
                version.head.number: judge.evaluate(version.head.number, version.layout, version.weights).metrics
                async for version in decoded_versions(reader, settings.wire)
            }
    assert [event.data["version"] for _, event in found] == expected
    assert {key for key, _ in found} <= {b"a"}
    for _, event in found:
        assert (event.role, event.data["client_id"], event.data["num_examples"]) == ("client", "a", 100)
        assert event.data["metrics"] == pytest.approx(measured[event.data["version"]])  # type: ignore[index]


async def test_a_client_without_validation_data_tells_nothing(federation: str) -> None:
    settings = _settings(federation, task={"entry": "noop:64"})
    task = load_task(settings.task, settings.client)
    async with running_from(MemoryBroker(), settings, initial_of(task, settings)) as running:
        assert await _take_part(running.broker, settings, task) >= 3
        assert await _told(running) == []


async def test_a_client_that_may_not_tell_goes_on(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(federation)
    task, initial = _task(settings, monkeypatch)

    async def forbidden(*_: object) -> None:
        raise BrokerError("Kafka does not permit this")

    async with running_from(MemoryBroker(), settings, initial) as running:
        monkeypatch.setattr("llmos_stream.roles.client.events.missing_topics", forbidden)
        assert await _take_part(running.broker, settings, task) >= 3
        assert await _told(running) == []


async def test_more_metrics_than_readers_take_are_left_out(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = _settings(federation)
    task, initial = _task(settings, monkeypatch)
    many = {"loss": 1.0, "x" * 500: 1.0} | {f"m{number}": float(number) for number in range(200)}
    monkeypatch.setattr("llmos_stream.training.site_evaluator.evaluate", lambda *_, **__: many | {"num_examples": 7.0})
    async with running_from(MemoryBroker(), settings, initial) as running:
        await _take_part(running.broker, settings, task)
        found = await _told(running)
    assert len(found) == 4
    for _, event in found:
        metrics: Any = event.data["metrics"]
        assert len(metrics) == 64
        assert metrics["loss"] == 1.0


async def test_a_site_compares_the_federations_model_with_its_own(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own has seen the site's data alone, from version 0 on, and as often."""
    client = {"id": "a", "wait_seconds": 10.0, "train_alone": True}
    settings = _settings(federation, client=client, server_optimizer={"lr": 0.25})  # else the two would be one
    task, initial = _task(settings, monkeypatch)
    async with running_from(broker, settings, initial) as running:
        assert await _take_part(broker, settings, task) >= 3
        found = [event.data for _, event in await _told(running)]
    alone = {data["version"]: data for data in found if data.get("trained_by") is not None}
    together = {data["version"]: data for data in found if data.get("trained_by") is None}
    assert list(together) == [0, 1, 2, 3]
    assert list(alone) == [1, 2, 3]
    assert {(data["client_id"], data["trained_by"], data["since"]) for data in alone.values()} == {("a", "a", 0)}
    oracle = load_task(settings.task, settings.client)
    local, batches = _local(oracle), oracle.train_batches(0)
    weights, held_back = initial.weights, task.validation_batches()
    assert held_back is not None
    for version in (1, 2, 3):
        local.trainer.optimizer = oracle.optimizer(local.trainer.model)
        local.train(weights, 0, [batches])
        weights = local.weights()
        expected = evaluate(local.trainer.model, held_back, oracle.loss)
        expected.pop("num_examples")
        assert alone[version]["metrics"] == pytest.approx(expected)
        assert together[version]["metrics"] != pytest.approx(expected)


def _local(task: Task) -> LocalModel:
    model = task.model()
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), "all")


async def test_without_validation_data_there_is_nothing_to_compare_by(federation: str) -> None:
    client = {"id": "a", "wait_seconds": 10.0, "train_alone": True}
    settings = _settings(federation, task={"entry": "noop:64"}, client=client)
    task = load_task(settings.task, settings.client)
    async with running_from(MemoryBroker(), settings, initial_of(task, settings)) as running:
        with pytest.raises(ConfigError, match="validation_batches"):
            await _take_part(running.broker, settings, task)


async def _make(running: RunningFederation, *clients: str, last: int | None = None) -> None:
    """Let one update of each client make a version."""
    for number, client in enumerate(clients, start=1 if last is None else last):
        await running.send(update(delta_of(0.1), client_id=client, sequence=number, base_version=number - 1), client)
        await running.version(number)


async def _say(
    running: RunningFederation, site: str | None, version: int, *, num_examples: int = 10, **metrics: float | None
) -> None:
    data: dict[str, object] = {"version": version, "metrics": metrics, "num_examples": num_examples}
    role = Role.EVALUATOR if site is None else Role.CLIENT
    told = data if site is None else data | {"client_id": site}
    now = running.federation.clock.time_ms()
    async with running.broker.producer() as producer:
        await emit(producer, running.topics.evaluations, Event(EventKind.EVALUATION, role, now, told))


def _by_sites(federation: str, **stop: Any) -> Settings:
    return settings_for(federation, stop={"source": "sites", "target": 0.9, "quorum": 2} | stop)


async def test_sites_end_a_run_and_the_evaluator_and_strangers_do_not(broker: Broker, federation: str) -> None:
    async with aggregator(broker, _by_sites(federation)) as running:
        await _make(running, "a", "b", "c")
        await _say(running, None, 3, accuracy=1.0)
        for number in range(20):
            await _say(running, f"stranger{number}", 3, accuracy=1.0, num_examples=10**9)
        await _say(running, "a", 2, accuracy=1.0)  # alone
        await _say(running, "a", 3, accuracy=0.95)
        await _say(running, "b", 3, accuracy=0.89)
        end = await running.task
    assert end is not None
    assert (end.reason, end.version) == ("target", 3)
    assert end.detail == "accuracy 0.92 at version 3 reached the target 0.9 (the mean of 2 sites)"
    assert end.stop is not None
    assert (end.stop["source"], end.stop["quorum"]) == ("sites", 2)


@pytest.mark.parametrize(
    ("of_sites", "values", "reached"),
    [("mean", [0.99, 0.99, 0.75], "0.91"), ("median", [0.2, 0.92, 0.95], "0.92"), ("worst", [0.9, 0.95, 0.99], "0.9")],
)
async def test_what_of_the_sites_the_target_looks_at(
    federation: str, of_sites: str, values: list[float], reached: str
) -> None:
    async with aggregator(MemoryBroker(), _by_sites(federation, quorum=3, of_sites=of_sites)) as running:
        await _make(running, "a", "b", "c")
        for site, value in zip("abc", values, strict=True):
            await _say(running, site, 3, accuracy=value)
        end = await running.task
    assert end is not None
    assert end.detail == f"accuracy {reached} at version 3 reached the target 0.9 (the {of_sites} of 3 sites)"


async def test_no_site_outweighs_the_others_nor_speaks_twice(federation: str) -> None:
    async with aggregator(MemoryBroker(), _by_sites(federation, quorum=3, target=0.7)) as running:
        await _make(running, "a", "b", "c", "d")
        await _say(running, "a", 3, accuracy=1.0, num_examples=10**9)  # counts for 30
        await _say(running, "a", 3, accuracy=1.0)
        await _say(running, "b", 3, accuracy=0.0)
        await _say(running, "c", 3, accuracy=0.0)  # 30 / 50
        await _say(running, "a", 4, accuracy=None)  # not a number
        await _say(running, "b", 4, accuracy=0.7)
        await _say(running, "c", 4, accuracy=0.9)
        end = await running.task
    assert end is not None
    assert end.detail.startswith("accuracy 0.8 at version 4")


async def test_after_the_deadline_what_is_there_counts(federation: str) -> None:
    async with aggregator(MemoryBroker(), _by_sites(federation, quorum=4, quorum_seconds=0.05)) as running:
        await _make(running, "a", "b")
        for site in "ab":
            await _say(running, site, 2, accuracy=0.95)
        end = await running.task
    assert end is not None
    assert end.detail.endswith("(the mean of 2 sites)")


async def test_what_waits_for_a_quorum_survives_a_restart(broker: Broker, federation: str) -> None:
    settings = _by_sites(federation)
    async with aggregator(broker, settings) as running:
        await _make(running, "a", "b")
        await _say(running, "b", 1, accuracy=0.1)
        await _say(running, "a", 1, accuracy=0.2)
        await _say(running, "a", 2, accuracy=0.95)
        number, read_to = 2, -1
        while read_to < 2:  # until a version is committed after all that was said: it names the place to read on from
            number += 1
            await _make(running, "b", last=number)
            kept = (await control_of(running)).checkpoint_of(number)
            assert kept is not None
            read_to = kept.evaluations or 0
        assert read_to == 2  # the report that waits is read again, what has counted is not
        await running.kill()
    async with aggregator(broker, settings) as running:
        await _say(running, "b", 2, accuracy=0.95)
        end = await asyncio.wait_for(running.task, 60)
    assert end is not None
    assert end.detail == "accuracy 0.95 at version 2 reached the target 0.9 (the mean of 2 sites)"


async def test_patience_counts_versions_that_enough_sites_have_measured(federation: str) -> None:
    async with aggregator(MemoryBroker(), _by_sites(federation, target=None, patience=2)) as running:
        await _make(running, "a", "b", "a2", "b2")
        for version, value in ((1, 0.5), (2, 0.4), (3, 0.3)):
            await _say(running, "a", version, accuracy=value)
            await _say(running, "b", version, accuracy=value)
        end = await running.task
    assert end is not None
    assert end.reason == "patience"


async def test_one_site_makes_no_collapse_and_most_do(federation: str) -> None:
    settings = settings_for(
        federation, stop={"source": "sites", "quorum": 3}, guard={"on_collapse": "none", "loss_factor": 3.0}
    )
    async with aggregator(MemoryBroker(), settings) as running:
        await _make(running, "a", "b", "c")
        for site in "abc":
            await _say(running, site, 1, loss=1.0)
        for site, loss in (("a", None), ("b", 1.1), ("c", 1.2)):
            await _say(running, site, 2, loss=loss)
        for site, loss in (("a", None), ("b", None), ("c", 1.2)):
            await _say(running, site, 3, loss=loss)
        (event,) = await running.events("model_collapsed", 1)
    assert (event.data["version"], event.data["loss"], event.data["best_loss"]) == (3, None, 1.0)

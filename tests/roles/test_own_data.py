"""Sites whose data nobody else can read: every role makes the task, and only a client opens its data."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from torch import nn

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.inference.inputs import InputSpec, input_spec
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import evaluate_once, run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.testing import until
from llmos_stream.training import Task, load_task
from llmos_stream.training.batches import Batch
from llmos_stream.training.model_evaluator import ModelEvaluator
from tests.inference.following import serving_of
from tests.roles.aids import settings_for

_PASSWORD = "geheim"  # noqa: S105  what must not be seen anywhere
_opened: list[str] = []


class Wards(Task):
    def model(self) -> nn.Module:
        return nn.Linear(2, 2)

    def train_batches(self, shard: int = 0) -> Iterator[Batch]:
        _opened.append(self.data)
        lines = Path(urlsplit(self.data).path).read_text().split()
        rows = torch.tensor([[float(value) for value in line.split(",")] for line in lines])
        yield rows[:, :2], rows[:, 2].long()

    def example(self) -> Any:
        return torch.zeros(2)


class Central(Wards):
    def test_batches(self, batch_size: int) -> Iterator[Batch]:
        yield torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])


@pytest.fixture(autouse=True)
def _forget() -> None:
    _opened.clear()


def _settings(federation: str, name: str = "Wards", **sections: Any) -> Settings:
    task = {"entry": f"{__name__}:{name}"}
    given: dict[str, Any] = {"aggregation": {"buffer_size": 2}, "stop": {"max_versions": 3}}
    return settings_for(federation, **{"task": task, "client": {"wait_seconds": 0.1}, **given, **sections})


def _sites(settings: Settings, folder: Path) -> list[Settings]:
    sites = []
    for name in ("north", "south"):
        (folder / name).write_text("0,1,0\n1,0,1\n")
        data = f"file://ward:{_PASSWORD}@archive{folder / name}"
        sites.append(settings.changed(client={"id": name, "data": data}))
    return sites


async def _all_records(broker: Broker, federation: str) -> dict[str, bytes]:
    """Everything that was written, by topic."""
    found = {}
    for topic in Topics(federation).names:
        async with broker.reader([topic], start="earliest", check_crcs=False) as reader:
            records = []
            while await reader.lag() > 0:
                records += await reader.poll(1.0)
            found[topic] = b"".join((record.key or b"") + (record.value or b"") for record in records)
    return found


async def test_only_the_clients_open_data_and_no_password_is_in_the_log(
    broker: Broker, federation: str, tmp_path: Path
) -> None:
    settings = _settings(federation, "Central")
    async with Offload(2) as offload, Offload(2) as training:
        task, shutdown = load_task(settings.task, settings.client), Shutdown()
        async with serving_of(broker, settings, task) as serving:
            await run_all(
                run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown),
                run_evaluator(broker, settings, task, offload, shutdown),
                *(
                    run_client(
                        broker,
                        own,
                        load_task(own.task, own.client),
                        ClientState(own.client.id or "", None),
                        training,
                        shutdown,
                    )
                    for own in _sites(settings, tmp_path)
                ),
            )
            await until(lambda: serving.pool.newest == 3)
            answer = await serving.http.post("/v1/predict", json={"inputs": [[0.0, 1.0]]})
    assert answer.status_code == 200
    assert {Path(data).name for data in _opened} == {"north", "south"}
    written = await _all_records(broker, federation)
    assert all(written[topic] for topic in (Topics(federation).updates, Topics(federation).evaluations))
    assert not [topic for topic, records in written.items() if _PASSWORD.encode() in records]


async def test_an_evaluator_says_at_once_that_there_are_no_central_test_data() -> None:
    settings = _settings("untested")
    task = load_task(settings.task, settings.client)
    async with Offload(1) as offload:
        for evaluate in (run_evaluator, evaluate_once):
            with pytest.raises(ConfigError, match=r"Wards': this task has no central test data \(test_batches gives N"):
                await evaluate(MemoryBroker(), settings, task, offload, Shutdown())  # no topics are there yet
    assert not _opened


def test_an_evaluator_measures_the_metrics_of_the_task() -> None:
    class Measured(Central):
        def metrics(self) -> dict[str, Any]:
            return {"rows": lambda outputs, _: len(outputs)}

    settings = _settings("measured")
    task = Measured(settings.task, settings.client)
    initial = initial_of(task, settings)
    found = ModelEvaluator(task, settings.task, 8).evaluate(0, initial.layout, initial.weights)
    assert found.metrics["rows"] == 2.0
    assert found.num_examples == 2


def test_the_service_learns_from_the_example_what_the_model_takes() -> None:
    settings = _settings("served")
    assert input_spec(load_task(settings.task, settings.client)) == InputSpec((2,), torch.float32)


async def test_a_client_without_data_says_where_to_name_them(broker: Broker, federation: str) -> None:
    settings = _settings(federation)
    task = load_task(settings.task, settings.client)
    async with Offload(1) as offload:
        shutdown = Shutdown()
        roles = run_all(
            run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown),
            run_client(broker, settings, task, ClientState("north", None), offload, shutdown),
        )
        with pytest.raises(TaskError, match=r"say where they are, by --client\.data"):
            await roles

"""The base class `Task`: what a site writes, what it need not write, and what it is told where that is not enough."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAUROC, MulticlassF1Score, MulticlassRecall

import llmos_stream
from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.batches import Batch
from llmos_stream.training.local import evaluate
from llmos_stream.training.metrics import Metric

_OPENED: list[str] = []


class Wards(Task):
    """What a site writes, no more: its batches come from a generator that opens the site's file."""

    def model(self) -> nn.Module:
        return nn.Linear(2, self.options.get("classes", 2))

    def train_batches(self, shard: int = 0) -> Iterator[Batch]:
        _OPENED.append(self.data)
        rows = torch.from_numpy(np.loadtxt(self.data, delimiter=",", dtype=np.float32))
        for start in range(0, len(rows), self.client.batch_size):
            part = rows[start : start + self.client.batch_size]
            yield part[:, :2], part[:, 2].long()


class Renamed(Wards):
    name = "renamed"


class Further(Wards):
    """One of each that has a default."""

    def validation_batches(self) -> Iterator[Batch]:
        yield torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)

    def metrics(self) -> Mapping[str, Metric]:
        return {"first": lambda outputs, _: outputs.shape[0]}


class Old:
    """The seven members of before, and no base class."""

    name = "old"

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        self._client = client

    def model(self) -> nn.Module:
        return nn.Linear(1, 2)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.Adam(model.parameters(), self._client.lr)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets)

    def train_batches(self, shard: int) -> list[Batch]:
        return [(torch.ones(4, 1), torch.ones(4, dtype=torch.long))]

    def test_batches(self, batch_size: int) -> list[Batch]:
        return self.train_batches(0)

    def num_train_examples(self, shard: int) -> int:
        return 4


class Bare:
    """The two members that nobody can do without."""

    def __init__(self, *_: object) -> None: ...

    def model(self) -> nn.Module:
        return nn.Linear(1, 2)

    def train_batches(self, shard: int) -> Iterator[Batch]:
        return iter([(torch.ones(4, 1), torch.ones(4, dtype=torch.long))] * 3)


def make(task: TaskSettings, client: ClientSettings) -> Task:
    return Wards(task, client)


class NoModel(Bare):
    def model(self) -> Any:
        return "a model"


class NoBatches(Bare):
    def train_batches(self, shard: int) -> Any:
        return None


class Unfinished(Task):
    def model(self) -> nn.Module:
        return nn.Linear(1, 1)


class Connecting(Bare):
    def train_batches(self, shard: int) -> Any:
        raise ConnectionError("could not connect to postgresql://ward:geheim@db/wards?sslmode=on, password=geheim")


def _load(name: str, data: object = None, **options: Any) -> Task:
    client = ClientSettings(data=None if data is None else str(data), batch_size=2)
    return load_task(TaskSettings(entry=f"{__name__}:{name}", options=options), client)


def _trained(task: Task, epochs: int = 2) -> list[int]:
    """How many examples each epoch had."""
    model = task.model()
    trainer, batches = LocalTrainer(model, task.optimizer(model), task.loss), task.train_batches()
    return [trainer.run_epoch(batches).num_examples for _ in range(epochs)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_text("0,1,0\n1,0,1\n0.5,1,0\n")
    return path


def test_it_is_the_packages_own() -> None:
    assert llmos_stream.Task is Task


@pytest.mark.parametrize(
    ("name", "told"), [("Wards", "Wards"), ("make", "Wards"), ("Renamed", "renamed"), ("Old", "old"), ("Bare", "Bare")]
)
def test_a_class_or_a_callable_makes_one_with_a_name(name: str, told: str) -> None:
    task = _load(name)
    assert isinstance(task, Task)
    assert task.name == told


def test_two_members_are_enough_to_train_on_ones_own_file(rows: Path) -> None:
    assert _trained(_load("Wards", rows), epochs=3) == [3, 3, 3]


def test_the_others_have_defaults(rows: Path) -> None:
    task = _load("Wards", rows, classes=3)
    model = task.model()
    assert model.out_features == 3
    assert task.options == {"classes": 3}
    assert task.data == str(rows)
    assert task.validation_batches() is task.test_batches(8) is task.example() is task.num_train_examples() is None
    assert task.metrics() == {}
    (group,) = task.optimizer(model).param_groups
    assert (group["lr"], group["momentum"]) == (ClientSettings().lr, 0.9)


def test_what_a_task_adds_is_asked_for_anew_each_time(rows: Path) -> None:
    task = _load("Further", rows)
    batches = task.validation_batches()
    assert batches is not None
    measured = [evaluate(task.model(), batches, task.loss, task.metrics()) for _ in range(2)]
    assert [found["num_examples"] for found in measured] == [3.0, 3.0]
    assert measured[0]["first"] == 3.0


@pytest.mark.parametrize(("name", "expected"), [("Old", [4, 4]), ("Bare", [12, 12])])
def test_an_object_without_the_base_class_goes_on_working(name: str, expected: list[int]) -> None:
    assert _trained(_load(name)) == expected


def test_making_the_task_and_its_model_touches_no_data() -> None:
    _OPENED.clear()
    task = _load("Wards")
    task.model()
    assert task.test_batches(8) is None
    assert not _OPENED
    with pytest.raises(TaskError, match=r"say where they are, by --client\.data, LLMOS_CLIENT__DATA or data in the"):
        list(task.train_batches())


def test_a_model_is_the_same_in_every_process_and_the_generator_as_before() -> None:
    before = torch.get_rng_state()
    first, torch_state = _load("Wards").model(), torch.get_rng_state()
    torch.randn(7)
    second = _load("Wards").model()
    other = load_task(TaskSettings(entry=f"{__name__}:Wards", seed=1), ClientSettings()).model()
    assert torch.equal(first.weight, second.weight)  # type: ignore[arg-type]
    assert not torch.equal(first.weight, other.weight)  # type: ignore[arg-type]
    assert torch.equal(before, torch_state)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("NoModel", "model gives a str, not a torch.nn.Module"),
        ("NoBatches", "train_batches gives None, so there is nothing to train on"),
        ("Unfinished", "TypeError: Can't instantiate abstract class Unfinished .*train_batches"),
    ],
)
def test_what_it_lacks_is_said_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(TaskError, match=f"^task.entry '{__name__}:{name}': {reason}") as caught:
        _trained(_load(name))
    assert "\n" not in str(caught.value)


def test_a_wrong_path_is_said_with_the_line_that_opened_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.csv"):
        _trained(_load("Wards", tmp_path / "nowhere.csv"))


def test_empty_data_are_said(tmp_path: Path) -> None:
    class Empty(Bare):
        def train_batches(self, shard: int) -> Any:
            return iter(())

    globals()["Empty"] = Empty
    try:
        with pytest.raises(TaskError, match="there is no batch: the loader is empty"):
            _trained(_load("Empty"))
    finally:
        del globals()["Empty"]


def test_no_password_is_told_or_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llmos_stream")
    with pytest.raises(TaskError, match=r"could not connect to postgresql://\*\*\*@db/wards\?sslmode=on") as caught:
        _load("Connecting", "postgresql://ward:geheim@db/wards").train_batches()
    assert "geheim" not in str(caught.value) + caplog.text
    assert "Traceback" in caplog.text


class _Summing:
    """An object as torchmetrics has them."""

    def __init__(self, result: Any = None) -> None:
        self.seen, self._result = [7.0], result

    def reset(self) -> None:
        self.seen = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        self.seen.append(float(targets.sum()))

    def compute(self) -> Any:
        return self._result or torch.tensor(sum(self.seen))


def _measured(metrics: Mapping[str, Any]) -> dict[str, float]:
    batches: Iterable[Batch] = [
        (torch.ones(3, 2), torch.tensor([0, 1, 1])),
        (torch.ones(1, 2), torch.tensor([1])),
    ]
    return evaluate(nn.Identity(), batches, nn.functional.cross_entropy, metrics)


def test_metrics_are_means_over_examples_or_what_an_object_computes() -> None:
    found = _measured({"share": lambda _, targets: targets.float().mean(), "sum": _Summing()})
    assert found["share"] == pytest.approx(0.75)  # (3 x 2/3 + 1 x 1) / 4, and not the mean of two batches
    assert found["sum"] == 3.0
    assert {"loss", "accuracy", "num_examples"} < found.keys()


def test_metrics_of_torchmetrics_are_begun_anew_and_taken_over_all_batches() -> None:
    several = MetricCollection({"f1": MulticlassF1Score(2, average="macro"), "auroc": MulticlassAUROC(2)})
    batches: list[Batch] = [
        (torch.tensor([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0]]), torch.tensor([0, 1, 1])),
        (torch.tensor([[1.0, 4.0]]), torch.tensor([1])),
    ]
    metrics: dict[str, Any] = {"recall": MulticlassRecall(2, average="macro"), "both": several}
    found = [evaluate(nn.Identity(), batches, nn.functional.cross_entropy, metrics) for _ in range(2)]
    assert found[0] == found[1]
    assert found[0]["recall"] == pytest.approx((1 + 2 / 3) / 2)
    assert found[0]["both.f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)
    assert found[0]["both.auroc"] == pytest.approx(2 / 3)


def test_a_metric_may_give_several_by_name_and_take_the_place_of_the_accuracy() -> None:
    found = _measured({"both": _Summing({"a": 1, "b": torch.tensor(2.0)}), "accuracy": lambda *_: 0.25})
    assert (found["both.a"], found["both.b"], found["accuracy"]) == (1.0, 2.0, 0.25)


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        ({"loss": lambda *_: 1}, "metric loss: that is measured anyway"),
        ({"f1": 3}, "metric f1: a int is neither a callable nor has reset, update and compute"),
        ({"f1": lambda *_: "high"}, "metric f1: it gives a str, not a number"),
        ({"f1": lambda outputs, _: outputs}, r"metric f1: it gives a tensor of shape \(3, 2\), not one number"),
        ({"f1": lambda *_: 1 / 0}, r"metric f1: ZeroDivisionError: division by zero \(.*test_own_task\.py:\d+\)"),
    ],
)
def test_a_metric_that_is_none_is_named(metrics: Mapping[str, Any], said: str) -> None:
    with pytest.raises(TaskError, match=said):
        _measured(metrics)

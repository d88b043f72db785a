"""Loading a task: the built-in ones, one of the user's own, and everything that can be wrong with it."""

import sys
from pathlib import Path
from uuid import uuid4

import pytest
import torch

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer, Task, load_task

OWN_TASK = """
import torch
from torch import nn

class Lines:
    name = "lines"

    def __init__(self, task, client):
        self.task, self.client = task, client

    def model(self):
        with torch.random.fork_rng():
            torch.manual_seed(self.task.seed)
            return nn.Linear(1, 1)

    def optimizer(self, model):
        return torch.optim.SGD(model.parameters(), lr=self.client.lr)

    def loss(self, outputs, targets):
        return nn.functional.mse_loss(outputs, targets)

    def train_batches(self, shard):
        x = torch.linspace(0, 1, 8)[:, None]
        return [(x, shard * x)]

    def test_batches(self, batch_size):
        return self.train_batches(0)

    def num_train_examples(self, shard):
        return 8

class Namespace:
    task = Lines

number = 3

def not_a_task(task, client):
    return object()

def broken(task, client):
    raise RuntimeError("the disk is on fire")
"""


def _load(entry: str, *, shards: int = 8) -> Task:
    return load_task(TaskSettings(entry=entry, shards=shards), ClientSettings())


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of an importable module that holds OWN_TASK."""
    name = f"task_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(OWN_TASK)
    monkeypatch.syspath_prepend(tmp_path)
    return name


@pytest.mark.parametrize("attribute", ["Lines", "Namespace.task"])
def test_a_task_of_ones_own_is_loaded_and_trained(module: str, attribute: str) -> None:
    task = load_task(TaskSettings(entry=f"{module}:{attribute}", seed=5), ClientSettings(lr=0.5))
    assert isinstance(task, Task)
    assert task.name == "lines"
    model = task.model()
    trainer = LocalTrainer(model, task.optimizer(model), task.loss)
    losses = [trainer.run_epoch(task.train_batches(2)).loss for _ in range(20)]
    assert losses[-1] < losses[0] / 2


@pytest.mark.parametrize("entry", ["digits", "blobs", "noop:10"])
def test_the_built_in_tasks_are_tasks(entry: str) -> None:
    task = _load(entry)
    assert isinstance(task, Task)
    assert task.name == entry.partition(":")[0]


@pytest.mark.parametrize(
    ("attribute", "reason"),
    [
        ("missing", "has no missing"),
        ("Lines.missing", r"has no Lines\.missing"),
        ("number", "number is a int, not a callable"),
        ("not_a_task", "returned object, which is no Task: it lacks model, train_batches"),
        ("broken", "RuntimeError: the disk is on fire"),
    ],
)
def test_what_is_wrong_with_a_task_is_said_with_its_entry(module: str, attribute: str, reason: str) -> None:
    with pytest.raises(TaskError, match=f"task.entry '{module}:{attribute}': .*{reason}"):
        _load(f"{module}:{attribute}")


def test_a_task_in_the_current_folder_is_found_by_an_installed_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python has the current folder on its path where it is run as `python -m`, and not in a script of its own."""
    name = f"package_{uuid4().hex}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "task.py").write_text(f"from {name}.own import Lines\n")
    (tmp_path / name / "own.py").write_text(OWN_TASK)
    path = [place for place in sys.path if place and Path(place).exists() and Path(place) != Path.cwd()]
    monkeypatch.setattr(sys, "path", list(path))
    monkeypatch.chdir(tmp_path)
    assert _load(f"{name}.task:Lines").num_train_examples(0) == 8
    assert sys.path == [*path, str(tmp_path)]
    with pytest.raises(TaskError, match="there is no module not_here"):
        _load("not_here:make")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def oops(:", "SyntaxError"),
        ("import not_installed_anywhere", "ModuleNotFoundError: No module named 'not_installed_anywhere'"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_module_that_cannot_be_imported_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, reason: str
) -> None:
    name = f"task_{uuid4().hex}"
    (tmp_path / f"{name}.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(TaskError, match=f"task.entry '{name}:make': .*{reason}"):
        _load(f"{name}:make")


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (
            "no_such_package.tasks:make",
            r"there is no module no_such_package \(looked in the current folder too\); is its folder on PYTHONPATH",
        ),
        ("json.no_such_module:make", r"there is no module json\.no_such_module"),
        ("digit", r"neither one of digits, blobs, llm, noop:N nor package\.module:callable"),
        ("", "neither one of"),
        (":make", "neither one of"),
        ("json:", "neither one of"),
        (".relative:make", "TypeError"),
        ("noop", "neither one of"),
        ("noop:", "write noop:N with N parameters, at least 10; got ''"),
        ("noop:9", "at least 10; got '9'"),
        ("noop:-10", "at least 10; got '-10'"),
        ("noop:1e6", "at least 10; got '1e6'"),
    ],
)
def test_an_entry_that_names_nothing_is_refused(entry: str, reason: str) -> None:
    with pytest.raises(TaskError, match=f"task.entry {entry!r}: .*{reason}"):
        _load(entry)


def test_digits_without_scikit_learn_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(TaskError, match=r"'digits': needs scikit-learn .* pip install -e '\.\[demo\]'"):
        _load("digits")


def test_scikit_learn_is_not_needed_by_the_other_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert len(list(_load("blobs").model().parameters())) == 4


def test_more_shards_than_examples_are_refused() -> None:
    with pytest.raises(TaskError, match=r"'blobs': task\.shards: 2000 shards of at least 1 examples need 2000"):
        _load("blobs", shards=2000)


def test_loading_a_task_leaves_the_callers_generators_alone() -> None:
    before = torch.get_rng_state()
    for entry in ("digits", "blobs", "noop:1000"):
        task = _load(entry)
        model = task.model()
        LocalTrainer(model, task.optimizer(model), task.loss).run_epoch(task.train_batches(0))
    assert torch.equal(torch.get_rng_state(), before)

"""A task whose own code fails: one line says which task, what it raised and where, in every role."""

import asyncio
import itertools
import sys
import textwrap
import traceback
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_stream import FederatedLearning
from llmos_stream.broker import MemoryBroker
from llmos_stream.config import Settings, load
from llmos_stream.demo import ClientMix, make_scenario
from llmos_stream.errors import TaskError
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import ExitCode, Offload, Shutdown, run_all, run_process
from llmos_stream.training import load_task
from tests.roles.aids import settings_for

_TASK = """
    from llmos_stream.training.synthetic import BlobsTask

    def fails():
        raise ValueError("the disk\\nis gone")  # line 5

    class Task(BlobsTask):
        def {method}(self, *arguments):
            {body}

    make = Task
    """
_PLACES = [
    ("client", "optimizer", "fails()"),
    ("client", "loss", "fails()"),
    ("client", "train_batches", "fails()"),
    ("client", "train_batches", "return map(lambda _: fails(), [0])"),
    ("client", "num_train_examples", "fails()"),
    ("evaluator", "optimizer", "fails()"),
    ("evaluator", "test_batches", "fails()"),
    ("evaluator", "test_batches", "return map(lambda _: fails(), [0])"),
    ("aggregator", "model", "fails()"),
]
_names = (f"task_in_trouble_{number}" for number in itertools.count())


@pytest.fixture
def write_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a task that fails in one place; returns its entry."""
    monkeypatch.syspath_prepend(tmp_path)
    written: list[str] = []

    def write(method: str, body: str) -> str:
        written.append(next(_names))
        (tmp_path / f"{written[-1]}.py").write_text(textwrap.dedent(_TASK.format(method=method, body=body)))
        return f"{written[-1]}:make"

    yield write
    for name in written:
        sys.modules.pop(name, None)


async def _run(role: str, entry: str, shutdown: Shutdown) -> None:
    """Run an aggregator, and this role with a task that fails."""
    broker, good = MemoryBroker(), settings_for("trouble", task={"entry": "blobs"})
    bad = settings_for("trouble", task={"entry": entry}, client={"id": "c"})
    async with Offload(2) as offload:
        task, sound = load_task(bad.task, bad.client), load_task(good.task, good.client)
        aggregator = initial_of, (task, bad) if role == "aggregator" else (sound, good)
        roles: list[Coroutine[Any, Any, Any]] = [
            run_aggregator(broker, good, lambda: aggregator[0](*aggregator[1]), offload, shutdown)
        ]
        if role == "client":
            roles.append(run_client(broker, bad, task, ClientState("c", None), offload, shutdown))
        elif role == "evaluator":
            roles.append(run_evaluator(broker, bad, task, offload, shutdown))
        await run_all(*roles)


@pytest.mark.parametrize(("role", "method", "body"), _PLACES)
def test_one_line_says_what_and_where(
    role: str, method: str, body: str, write_task: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    entry = write_task(method, body)
    code = run_process(lambda shutdown: _run(role, entry, shutdown))
    assert code is ExitCode.FAILED
    file = tmp_path / f"{entry.removesuffix(':make')}.py"
    assert capfd.readouterr().err == f"error: task.entry '{entry}': ValueError: the disk is gone ({file}:5)\n"


def test_its_traceback_is_in_the_log_at_debug_once(write_task: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "llmos_stream.training.task_errors")
    entry = write_task("loss", "fails()")
    with pytest.raises(TaskError) as raised:
        asyncio.run(_run("client", entry, Shutdown()))
    assert caplog.text.count("Traceback") == caplog.text.count("in fails") == 1
    assert "ExceptionGroup" not in "".join(traceback.format_exception(raised.value))


def test_what_lies_in_a_library_is_blamed_on_the_line_that_called_it(write_task: Any) -> None:
    entry = write_task("loss", "import torch; return torch.zeros(2, 3) @ torch.zeros(2, 3)")
    with pytest.raises(TaskError, match=r"RuntimeError: .*mat1 .*task_in_trouble_\d+\.py:9\)$"):
        asyncio.run(_run("client", entry, Shutdown()))


def test_a_bad_make_says_where_too(write_task: Any, tmp_path: Path) -> None:
    entry = write_task("__init__", "fails()")
    with pytest.raises(TaskError, match=r"ValueError: the disk is gone \(.*task_in_trouble_\d+\.py:5\)$"):
        load_task(load({"task": {"entry": entry}}).task, Settings().client)


async def test_a_demonstration_ends_with_it(write_task: Any) -> None:
    settings = load({"task": {"entry": write_task("loss", "fails()")}})
    scenario = make_scenario(settings, ClientMix(2, slow=0, late=0, leaving=0))
    with pytest.raises(TaskError, match="the disk is gone") as raised:
        await run_embedded(scenario.settings, scenario.clients, lambda _: None, Shutdown())
    told = "".join(traceback.format_exception(raised.value))
    assert "ExceptionGroup" not in told
    assert told.count("in fails") == 1


def test_the_callers_own_loop_gets_its_own_error() -> None:
    model = torch.nn.Linear(2, 2)

    class Batches:
        def __iter__(self) -> Iterator[Any]:
            return self

        def __next__(self) -> Any:
            raise ValueError("the disk is gone")

    with FederatedLearning(model, Batches(), torch.optim.SGD(model.parameters(), lr=0.1)) as fl:
        with pytest.raises(ValueError, match="the disk is gone") as raised:
            fl.train(0)
        told = "".join(traceback.format_exception(raised.value))
        assert told.count("Traceback") == told.count("in __next__") == 1

"""Making the task that the settings name, whoever wrote it, as one that roles can rely on."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.config.plugins import import_path, is_path
from llmos_stream.errors import ConfigError, TaskError, install
from llmos_stream.training.batches import Batch, anew
from llmos_stream.training.digits import DigitsTask
from llmos_stream.training.hooks import Hook
from llmos_stream.training.metrics import Metric
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.synthetic import BlobsTask, NoopTask
from llmos_stream.training.task import Task
from llmos_stream.training.task_errors import described, task_errors

_NEEDED = ("model", "train_batches")


def _llm(task: TaskSettings, client: ClientSettings) -> Task:
    try:
        from llmos_stream.training.llm.task import LlmTask  # noqa: PLC0415  # only this task needs the extra
    except ImportError as error:
        raise TaskError(f"needs transformers and peft ({error}); {install('llm')}") from error
    return LlmTask(task, client)


_BUILT_IN: dict[str, Callable[[TaskSettings, ClientSettings], Task]] = {
    "digits": DigitsTask,
    "blobs": BlobsTask,
    "llm": _llm,
}
_NOOP = "noop:"
_seeding = threading.Lock()


def load_task(task: TaskSettings, client: ClientSettings) -> Task:
    """Make the task that `task.entry` names: `digits`, `blobs`, `llm`, `noop:N` or `package.module:callable`.

    A callable is imported by name, so the entry must come from this machine's own settings and never from
    a message. What it returns need not derive from `Task`: any object will do that has the members that differ.

    Raises:
        TaskError: Whatever goes wrong, with the entry and the reason.
    """
    try:
        return _LoadedTask(_make(task, client), task, client)
    except TaskError as error:
        raise TaskError(f"task.entry {task.entry!r}: {error}") from error
    except Exception as error:
        raise TaskError(f"task.entry {task.entry!r}: {described(error, task.entry)}") from error


def _make(task: TaskSettings, client: ClientSettings) -> Any:
    if task.entry in _BUILT_IN:
        return _BUILT_IN[task.entry](task, client)
    if task.entry.startswith(_NOOP):
        return NoopTask(task.entry.removeprefix(_NOOP), task, client)
    made = _imported(task.entry)(task, client)
    missing = [name for name in _NEEDED if not hasattr(made, name)]
    if missing:
        raise TaskError(f"returned {type(made).__name__}, which is no Task: it lacks {', '.join(missing)}")
    return made


def _imported(entry: str) -> Callable[[TaskSettings, ClientSettings], Any]:
    if not is_path(entry):
        raise TaskError(f"is neither one of {', '.join([*_BUILT_IN, _NOOP + 'N'])} nor package.module:callable")
    try:
        return import_path(entry)
    except ConfigError as error:
        raise TaskError(str(error)) from error


class _LoadedTask(Task):
    """The task that its author wrote, with the defaults for what it lacks.

    It seeds the model, makes used-up batches anew, and tells errors of the author's code in one line.
    """

    def __init__(self, made: Any, task: TaskSettings, client: ClientSettings) -> None:
        super().__init__(task, client)
        self.name = getattr(made, "name", None) or type(made).__name__
        self.counts_tokens = getattr(made, "counts_tokens", False) is True
        self._made = made

    @property
    def share(self) -> str:
        own = getattr(self._made, "share", None)
        return own if isinstance(own, str) else self.settings.share

    def model(self) -> nn.Module:
        with _seeded(derive_seed(self.settings.seed, "model")):
            model = self._ask("model")
        if not isinstance(model, nn.Module):
            raise self._error(f"model gives a {type(model).__name__}, not a torch.nn.Module")
        return model

    def train_batches(self, shard: int = 0) -> Iterable[Batch]:
        batches = self._batches("train_batches", shard)
        if batches is None:
            raise self._error("train_batches gives None, so there is nothing to train on")
        return batches

    def optimizer(self, model: nn.Module) -> Optimizer:
        return self._ask("optimizer", model)  # type: ignore[no-any-return]

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        return self._ask("loss", outputs, targets)  # type: ignore[no-any-return]

    def hooks(self) -> Sequence[Hook]:
        return self._ask("hooks")  # type: ignore[no-any-return]

    def metrics(self) -> Mapping[str, Metric]:
        return self._ask("metrics")  # type: ignore[no-any-return]

    def validation_batches(self) -> Iterable[Batch] | None:
        return self._batches("validation_batches")

    def test_batches(self, batch_size: int) -> Iterable[Batch] | None:
        return self._batches("test_batches", batch_size)

    def example(self) -> Any:
        return self._ask("example")

    def tensors(self) -> tuple[Tensor, Tensor] | None:
        return self._ask("tensors")  # type: ignore[no-any-return]

    def num_train_examples(self, shard: int = 0) -> int | None:
        return self._ask("num_train_examples", shard)  # type: ignore[no-any-return]

    def _ask(self, name: str, *arguments: Any) -> Any:
        """What the author's own member gives, or else that of `Task`."""
        own = getattr(self._made, name, None) or getattr(super(), name)
        with task_errors(self.settings.entry):
            return own(*arguments)

    def _batches(self, name: str, *arguments: Any) -> Iterable[Batch] | None:
        return anew(lambda: self._ask(name, *arguments))

    def _error(self, what: str) -> TaskError:
        return TaskError(f"task.entry {self.settings.entry!r}: {what}")


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let torch's own generators begin with `seed`, and put them back afterwards. One thread at a time may do so."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    with _seeding, torch.random.fork_rng(devices):
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        yield

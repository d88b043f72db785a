"""What a federation learns: the model, its optimiser and the data, behind one small interface.

A task of your own is a callable `make(task: TaskSettings, client: ClientSettings) -> Task`, named in the
local settings as `task.entry = "package.module:make"`. Every role of a federation makes the same task:
clients train on it, the evaluator tests on it, the aggregator takes its first weights from it.
"""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, runtime_checkable

from torch import Tensor, nn
from torch.optim import Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.config.plugins import import_path, is_path
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.training.digits import DigitsTask
from llmos_stream.training.synthetic import BlobsTask, NoopTask
from llmos_stream.training.task_errors import described


@runtime_checkable
class Task(Protocol):
    """One learning problem, split into shards of which a client holds one."""

    @property
    def name(self) -> str: ...

    def model(self) -> nn.Module:
        """A new model, with the same weights in every process that has the same `task.seed`.

        Constructors of layers draw from torch's own generator; inside
        `with torch.random.fork_rng(): torch.manual_seed(task.seed)` they are repeatable, and the
        generator is as before afterwards.
        """
        ...

    def optimizer(self, model: nn.Module) -> Optimizer:
        """A new local optimiser for `model`, at `client.lr`."""
        ...

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The mean loss over a batch, as one number that can be differentiated."""
        ...

    def train_batches(self, shard: int) -> Iterable[Batch]:
        """The training batches of a shard. Iterated once an epoch, so it must be re-iterable."""
        ...

    def test_batches(self, batch_size: int) -> Iterable[Batch]:
        """The batches that versions are evaluated on, the same for every role."""
        ...

    def num_train_examples(self, shard: int) -> int:
        """How many examples an epoch over a shard has."""
        ...


_MEMBERS = ("name", "model", "optimizer", "loss", "train_batches", "test_batches", "num_train_examples")
_BUILT_IN: dict[str, Callable[[TaskSettings, ClientSettings], Task]] = {"digits": DigitsTask, "blobs": BlobsTask}
_NOOP = "noop:"


def load_task(task: TaskSettings, client: ClientSettings) -> Task:
    """Make the task that `task.entry` names: `digits`, `blobs`, `noop:N` or `package.module:callable`.

    A callable is imported by name, so the entry must come from this machine's own settings and never from
    a message.

    Raises:
        TaskError: Whatever goes wrong, with the entry and the reason.
    """
    try:
        return _make(task, client)
    except TaskError as error:
        raise TaskError(f"task.entry {task.entry!r}: {error}") from error
    except Exception as error:
        raise TaskError(f"task.entry {task.entry!r}: {described(error, task.entry)}") from error


def _make(task: TaskSettings, client: ClientSettings) -> Task:
    if task.entry in _BUILT_IN:
        return _BUILT_IN[task.entry](task, client)
    if task.entry.startswith(_NOOP):
        return NoopTask(task.entry.removeprefix(_NOOP), task, client)
    made = _imported(task.entry)(task, client)
    missing = [name for name in _MEMBERS if not hasattr(made, name)]
    if missing:
        raise TaskError(f"returned {type(made).__name__}, which is no Task: it lacks {', '.join(missing)}")
    return made  # type: ignore[no-any-return]  # its members were looked up above


def _imported(entry: str) -> Callable[[TaskSettings, ClientSettings], Any]:
    if not is_path(entry):
        raise TaskError(f"is neither one of {', '.join([*_BUILT_IN, _NOOP + 'N'])} nor package.module:callable")
    try:
        return import_path(entry)
    except ConfigError as error:
        raise TaskError(str(error)) from error

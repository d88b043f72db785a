"""Measuring a version on a task's held-out data."""

from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import TaskSettings
from llmos_stream.errors import ConfigError
from llmos_stream.training.differences import difference
from llmos_stream.training.local import LocalTrainer, evaluate
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.task import Task
from llmos_stream.training.task_errors import task_errors


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a version reached on the held-out data."""

    version: int
    metrics: dict[str, float]
    num_examples: int
    seconds: float


class ModelEvaluator:
    """A task's model and held-out data, ready to measure versions. Not for two threads at once."""

    def __init__(self, task: Task, settings: TaskSettings, batch_size: int) -> None:
        self._task = task
        self._entry = settings.entry
        self._batch_size = batch_size
        with task_errors(settings.entry):
            model = task.model()
            trainer = LocalTrainer(model, task.optimizer(model), task.loss)
        self._local = LocalModel(trainer, settings.share)

    def evaluate(self, number: int, layout: Layout, weights: Tensor) -> Evaluation:
        """Measure version `number`, whose weights are flat.

        Raises:
            ConfigError: The version is of another model.
            TaskError: The task cannot measure it.
        """
        begun = perf_counter()
        if not layout.has_tensors_of(self._local.layout):
            raise ConfigError(
                "task.entry, task.share: the task's shared tensors are not the federation's "
                f"({difference(self._local.layout, layout)})"
            )
        if layout != self._local.layout:  # of a release that knew no buffers: in another order
            weights = self._local.layout.flatten(layout.unflatten(weights))
        self._local.load(weights)
        with task_errors(self._entry):
            metrics = evaluate(self._local.trainer.model, self._task.test_batches(self._batch_size), self._task.loss)
        num_examples = int(metrics.pop("num_examples"))
        return Evaluation(number, metrics, num_examples, perf_counter() - begun)

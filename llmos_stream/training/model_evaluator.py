"""Measuring a version on a task's held-out data."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from time import perf_counter

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import TaskSettings
from llmos_stream.errors import ConfigError
from llmos_stream.training.batches import Batch
from llmos_stream.training.differences import difference
from llmos_stream.training.local import LocalTrainer, evaluate
from llmos_stream.training.personal import personal_names, some_of
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.task import Task
from llmos_stream.training.task_errors import task_errors

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a version reached on the held-out data."""

    version: int
    metrics: dict[str, float]
    num_examples: int
    seconds: float


def check_test_data(task: Task, settings: TaskSettings, batch_size: int) -> Iterable[Batch]:
    """The task's central test data.

    Raises:
        ConfigError: There are none.
    """
    with task_errors(settings.entry):
        batches = task.test_batches(batch_size)
    if batches is None:
        raise ConfigError(
            f"task.entry {settings.entry!r}: this task has no central test data (test_batches gives None), "
            "so there is nothing to evaluate on here"
        )
    return batches


class ModelEvaluator:
    """A task's model and held-out data, ready to measure versions. Not for two threads at once.

    Raises:
        ConfigError: A part of the model is each site's own: measured here, it would be an untrained one.
    """

    def __init__(self, task: Task, settings: TaskSettings, batch_size: int) -> None:
        self._task = task
        self._settings = settings
        self._batch_size = batch_size
        with task_errors(settings.entry):
            model = task.model()
            trainer = LocalTrainer(model, task.optimizer(model), task.loss)
        self._local = LocalModel(trainer, task.share)
        if names := personal_names(model, task.share):
            raise ConfigError(
                f"task.share: {some_of(names)} of the model are each site's own and not shared, so nobody can measure "
                "the model here; sites measure it with theirs, on their own data"
            )

    def evaluate(self, number: int, layout: Layout, weights: Tensor) -> Evaluation:
        """Measure version `number`, whose weights are flat.

        Raises:
            ConfigError: The version is of another model, or the task has no test data.
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
        batches = check_test_data(self._task, self._settings, self._batch_size)
        with task_errors(self._settings.entry):
            metrics = evaluate(self._local.trainer.model, batches, self._task.loss, self._task.metrics())
        num_examples = int(metrics.pop("num_examples"))
        return Evaluation(number, metrics, num_examples, perf_counter() - begun)


def is_measurable(task: Task, settings: TaskSettings, batch_size: int) -> bool:
    """Whether an evaluator has something to measure; if not, a warning says why."""
    try:
        check_test_data(task, settings, batch_size)
        ModelEvaluator(task, settings, batch_size)
    except ConfigError as error:
        logger.warning("no version is measured: %s", error)
        return False
    return True

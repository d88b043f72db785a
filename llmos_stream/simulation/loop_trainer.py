"""Clients trained one after the other, by the code that clients on Kafka run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import TaskError
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.job import Job
from llmos_stream.training import LocalTrainer, Task, task_errors
from llmos_stream.training.hooks import hooks_of
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.personal import load_personal, personal_tensors
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import LOCAL_STEPS


class LoopTrainer:
    """See `Trainer`. `data` is None where the task has sites of its own."""

    batches = False

    def __init__(self, task: Task, settings: Settings, data: SplitData | None, how: str) -> None:
        self.how = how
        self._task = task
        self._entry, self._share, self._client = settings.task.entry, task.share, settings.client
        self._data = data
        self._adapts = settings.client.local_steps == "auto"
        self._shards = settings.task.shards
        self._steps: dict[int, LocalSteps] = {}
        self._ahead: dict[tuple[int, int], Sequence[Iterable[Any]]] = {}
        with task_errors(self._entry):
            model = task.model()
            hooks = (*task.hooks(), *hooks_of(settings.client, self._share))
            self.local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss, hooks), self._share)
        # What is not shared stays with each client.
        self._own = {name: tensor.clone() for name, tensor in personal_tensors(model, self._share).items()}
        self._kept: dict[int, Mapping[str, Tensor]] = {}

    def begin(self) -> tuple[Layout, Tensor]:
        return self.local.layout, self.local.weights()

    def size(self, job: Job) -> tuple[int, float]:
        if self._data is not None and not self._adapts:
            return self._data.seen(job.client, job.number), 1.0
        if not self._adapts:
            return (self._task.num_train_examples(self._shard(job.client)) or 1) * self._client.epochs, 1.0
        # How much a client does that adapts its steps is known once it has the batches.
        passes = [list(batches) for batches in self._steps_of(job.client).passes(job.fastest)]
        self._ahead[job.client, job.number] = passes
        steps = sum(map(len, passes))
        return sum(len(targets) for batches in passes for _, targets in batches), self._steps_of(job.client).share(
            steps
        )

    def timed(self, job: Job, seconds: float) -> None:
        if self._adapts:
            steps = sum(len(list(batches)) for batches in self._ahead[job.client, job.number])
            job.metrics = self._steps_of(job.client).done(steps, seconds)

    def train(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                self._train(job)
            except TaskError as error:
                job.failed = str(error)

    def _train(self, job: Job) -> None:
        trainer, model = self.local.trainer, self.local.trainer.model
        with task_errors(self._entry):
            if self._own:
                load_personal(model, self._share, self._kept.get(job.client, self._own))
            trainer.optimizer = self._task.optimizer(model)  # momentum of another client is none of this one's
            trained = self.local.train(job.base, job.version, self._passes(job))
        if self._own:
            self._kept[job.client] = {
                name: tensor.clone() for name, tensor in personal_tensors(model, self._share).items()
            }
        job.delta, job.buffers = trained.delta, trained.buffers
        job.num_examples = (
            self._steps_of(job.client).weight(trained.num_examples) if self._adapts else trained.num_examples
        )
        job.metrics = {LOCAL_STEPS: float(trained.steps), **trained.metrics, **job.metrics}

    def _passes(self, job: Job) -> Sequence[Iterable[Any]]:
        if (ahead := self._ahead.pop((job.client, job.number), None)) is not None:
            return ahead
        if self._data is not None:
            return self._data.passes(job.client, job.number)
        return self._steps_of(job.client).passes(0.0)

    def _steps_of(self, client: int) -> LocalSteps:
        if client not in self._steps:
            batches = self._task.train_batches(self._shard(client)) if self._data is None else _Own(self._data, client)
            self._steps[client] = LocalSteps(batches, self._client.epochs, self._client.local_steps)
        return self._steps[client]

    def _shard(self, client: int) -> int:
        return client % self._shards


class _Own:
    """A client's batches, in another order in each pass."""

    def __init__(self, data: SplitData, client: int) -> None:
        self._data = data
        self._client = client
        self._pass = 0

    def __iter__(self) -> Any:
        self._pass += 1
        return iter(self._data.one_pass(self._client, self._pass - 1))

"""Clients trained one after the other, by the code that clients on Kafka run."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.errors import TaskError
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.job import Job
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.sites import load_site
from llmos_stream.training import LocalTrainer, Task, task_errors
from llmos_stream.training.hooks import hooks_of
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.personal import personal_tensors
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.states import load_
from llmos_stream.types import LOCAL_STEPS


class LoopTrainer:
    """See `Trainer`. `data` is None where the task has sites of its own: each is loaded as its client would."""

    batches = False

    def __init__(self, task: Task, settings: RunSettings, data: SplitData | None, how: str) -> None:
        self.how = how
        self._task, self._settings = task, settings
        self._entry, self._share, self._client = settings.task.entry, task.share, settings.client
        self._data = data
        self._adapts = settings.client.local_steps == "auto"
        self._sites: dict[int, Task] = {}
        self._steps: dict[int, LocalSteps] = {}
        self._ahead: dict[tuple[int, int], Sequence[Iterable[Any]]] = {}
        with task_errors(self._entry):
            model = task.model()
            hooks = (*task.hooks(), *hooks_of(settings.client, self._share))
            self.local = LocalModel(LocalTrainer(model, task.optimizer(model), task.loss, hooks), self._share)
        # What is not shared stays with each client. These are the model's live tensors.
        self._live = personal_tensors(model, self._share)
        self._own = {name: tensor.clone() for name, tensor in self._live.items()}
        self._kept: dict[int, Mapping[str, Tensor]] = {}

    def begin(self) -> tuple[Layout, Tensor]:
        return self.local.layout, self.local.weights()

    def size(self, job: Job) -> tuple[int, float]:
        if self._data is not None and not self._adapts:
            return self._data.seen(job.client, job.number), 1.0
        if not self._adapts:
            with task_errors(self._entry):
                many = self._site(job.client).num_train_examples(self._shard(job.client))
            return (many or 1) * self._client.epochs, 1.0
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

    def own(self, client: int) -> Mapping[str, Tensor]:
        return self._kept.get(client, self._own)

    def train(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            try:
                self._train(job)
            except TaskError as error:
                job.failed = str(error)

    def _train(self, job: Job) -> None:
        trainer, model = self.local.trainer, self.local.trainer.model
        with task_errors(self._entry):
            load_(self._live, self._kept.get(job.client, self._own))
            trainer.optimizer = self._task.optimizer(model)  # momentum of another client is none of this one's
            trained = self.local.train(job.base, job.version, self._passes(job))
        if self._live:
            self._kept[job.client] = {name: tensor.clone() for name, tensor in self._live.items()}
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
            with task_errors(self._entry):
                batches = self._batches_of(client)
            self._steps[client] = LocalSteps(batches, self._client.epochs, self._client.local_steps)
        return self._steps[client]

    def _batches_of(self, client: int) -> Iterable[Any]:
        if self._data is not None:
            return _Own(self._data, client)
        return self._site(client).train_batches(self._shard(client))

    def _site(self, client: int) -> Task:
        if not (count := len(self._settings.data.sites)):
            return self._task
        number = client % count
        if number not in self._sites:
            self._sites[number] = load_site(self._settings, number)
        return self._sites[number]

    def _shard(self, client: int) -> int:
        return 0 if self._settings.data.sites else client % self._settings.task.shards


class _Own:
    """A client's batches, in another order in each pass."""

    def __init__(self, data: SplitData, client: int) -> None:
        self._data = data
        self._client = client
        self._pass = 0

    def __iter__(self) -> Any:
        self._pass += 1
        return iter(self._data.one_pass(self._client, self._pass - 1))

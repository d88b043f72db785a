"""A site of a scenario: its task, its model, and what it trains on, as a client has them."""

from dataclasses import dataclass

from torch import Tensor, nn

from llmos_stream.config import Settings
from llmos_stream.scenarios.site_task import Examples
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.hooks import hooks_of
from llmos_stream.training.shared_model import LocalModel, Trained


@dataclass(frozen=True, slots=True)
class Place:
    """A site's name, how long it takes for an update in the scenario's clock, and what it does not train on."""

    name: str
    seconds: float
    validation: Examples
    test: Examples


class Site:
    """Trains a model of its own on one site's rows, as a client does."""

    def __init__(self, settings: Settings, place: Place) -> None:
        settings = settings.changed(client={"data": place.name})
        self.place = place
        self._task = load_task(settings.task, settings.client)
        self._epochs = [self._task.train_batches()] * settings.client.epochs
        self.local = local_model(self._task, settings)

    @property
    def model(self) -> nn.Module:
        return self.local.model

    def train(self, weights: Tensor, version: int) -> Trained:
        """The next update, on the weights of this version."""
        self.local.trainer.optimizer = self._task.optimizer(self.model)
        return self.local.train(weights, version, self._epochs)

    def train_on(self) -> None:
        """Another epoch from where the model is: what a site does that is alone."""
        self.local.trainer.run_epoch(self._epochs[0])


def local_model(task: Task, settings: Settings) -> LocalModel:
    """A new model of the task, with its optimiser, loss and hooks."""
    model, share = task.model(), settings.task.share
    hooks = (*task.hooks(), *hooks_of(settings.client, share))
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss, hooks), share)

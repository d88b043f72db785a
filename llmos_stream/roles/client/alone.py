"""What the federation is worth to a site: its own model, trained alone, beside the versions that it takes part in."""

from llmos_stream.config import Settings
from llmos_stream.core.client_policy import train_seconds
from llmos_stream.errors import ConfigError
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.events import Trainer
from llmos_stream.roles.client.session import Client
from llmos_stream.training import Task, task_errors
from llmos_stream.training.alone import AloneModel
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.site_evaluator import SiteEvaluator, ValidationData


class AloneTraining:
    """Trains and measures a site's own model in the model that it takes part with, between two updates.

    It begins with the first version that the client gets; after a restart anew, with the one at hand.

    Raises:
        ConfigError: What it should be compared by is not there, or something trainable is not shared.
    """

    def __init__(
        self, federation: Federation, settings: Settings, task: Task, local: LocalModel, data: ValidationData
    ) -> None:
        if not settings.client.evaluate_every or data.batches() is None:
            raise ConfigError(
                "client.train_alone: the two models are compared on validation data: the task needs "
                "validation_batches, and client.evaluate_every must not be 0"
            )
        self._federation = federation
        self._settings = settings.client
        self._entry = settings.task.entry
        self._task = task
        self._local = local
        self._model = AloneModel(local, task.share)
        self._evaluator = SiteEvaluator(local, task.loss, data, settings.client.evaluate_every)
        with task_errors(self._entry):
            batches = task.train_batches(settings.client.shard)  # its own: each object orders its passes
        self._steps = LocalSteps(batches, settings.client.epochs, settings.client.local_steps)

    @property
    def model(self) -> AloneModel:
        """It, as it is now."""
        return self._model

    async def measure(self, client: Client, version: Version) -> None:
        """Measure it where that version was; with its first one it begins."""
        number, model = version.head.number, self._model
        model.begin(number, version.weights)
        if model.weights is None or model.since is None or model.since == number:
            return
        with task_errors(self._entry):
            found = await self._federation.run(self._evaluator.measure, number, model.weights)
        if found is not None:
            await client.events.measured(found, Trainer(client.client_id, model.since))

    async def train(self, version: Version, fastest: float) -> None:
        """Train it for as long as the update on `version` was. `fastest` is as in `LocalSteps.passes`."""
        self._model.begin(version.head.number, version.weights)
        batches, shutdown = self._steps.passes(fastest), self._federation.shutdown
        with task_errors(self._entry):
            self._local.trainer.optimizer = self._task.optimizer(self._local.trainer.model)
            trained = await self._federation.run(self._model.train, batches, lambda: shutdown.requested)
        self._steps.done(trained.steps, train_seconds(self._settings, trained.seconds))

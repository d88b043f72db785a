"""What a client does beside its updates, where the settings ask for it: the work of the client role, for a script.

`client.train_alone` trains a second model in the one that the script gave, `client.share_local` measures what other
sites have trained in it. Both are done while the script waits: before an update begins, and after `train` has sent one.
"""

from collections.abc import Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from copy import deepcopy
from typing import Any

from torch import nn
from torch.optim import Optimizer

from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import Version
from llmos_stream.roles.client import Client
from llmos_stream.roles.client.alone import AloneTraining
from llmos_stream.roles.client.cross_site import CrossSite, weights_after
from llmos_stream.training import LocalTrainer, Loss, Task
from llmos_stream.training.batches import Batch, Batches, reiterable
from llmos_stream.training.hooks import Hook
from llmos_stream.training.shared_model import LocalModel, SharedModel, Trained
from llmos_stream.training.site_evaluator import SiteEvaluator, ValidationData, is_due


class GivenTask(Task):
    """What a script gave, as a task: of its optimiser a copy over the same parameters, with a memory of its own."""

    def __init__(
        self, settings: Settings, model: nn.Module, data_loader: Batches, optimizer: Optimizer, loss: Loss
    ) -> None:
        """Raises ConfigError where the optimiser cannot be copied."""
        super().__init__(settings.task, settings.client)
        self._model, self._batches, self._loss = model, reiterable(data_loader), loss
        self._given, self._own = optimizer, _copied(optimizer)

    def model(self) -> nn.Module:
        return self._model

    def train_batches(self, shard: int = 0) -> Iterable[Batch]:
        return self._batches

    def optimizer(self, model: nn.Module) -> Optimizer:
        """It, with the learning rate and so on that the script's has by now."""
        for own, given in zip(self._own.param_groups, self._given.param_groups, strict=True):
            own.update({name: value for name, value in given.items() if name != "params"})
        return self._own

    def loss(self, outputs: Any, targets: Any) -> Any:
        return self._loss(outputs, targets)

    def trained_by(self, hooks: Sequence[Hook]) -> LocalModel:
        """The model, as its copy of the optimiser trains it."""
        return LocalModel(LocalTrainer(self._model, self._own, self._loss, hooks), self.share)


class Beside:
    """It belongs to one membership, which tells it what happens. `alone` is what trains a model of the site's own."""

    def __init__(
        self,
        settings: Settings,
        shared: SharedModel,
        loss: Loss,
        data: ValidationData | None,
        alone: tuple[GivenTask, LocalModel] | None,
    ) -> None:
        self._settings, self._shared, self._alone_with = settings, shared, alone
        self._data = ValidationData(lambda: None) if data is None else data
        measures = data is not None and settings.client.evaluate_every > 0
        self._evaluator = SiteEvaluator(shared, loss, self._data, 1) if measures else None
        self._measured: int | None = None
        self._alone: AloneTraining | None = None
        self._cross_site: CrossSite | None = None
        self._federation: Federation

    def begin(self, federation: Federation) -> None:
        """Raises ConfigError where what is asked for cannot be done with what the script gave."""
        self._federation, client = federation, self._settings.client
        if client.train_alone:
            if self._alone_with is None:
                raise ConfigError("client.train_alone: train needs the data_loader, the optimizer and validation")
            task, local = self._alone_with
            own = self._settings.changed(client={"epochs": 1})  # as many as `train` trains
            self._alone = AloneTraining(federation, own, task, local, self._data)
        if client.share_local:
            self._cross_site = CrossSite(federation, client, self._shared, self._evaluator, self._settings.task.entry)

    def connected(self) -> AbstractAsyncContextManager[None]:
        """Within the block the broker is there."""
        return nullcontext() if self._cross_site is None else self._cross_site.connected()

    async def received(self, client: Client, version: Version, *, is_last: bool) -> None:
        """Before an update begins with a version: measure, which leaves other weights in the model."""
        if self._cross_site is not None:
            await self._cross_site.measure(client, version, is_last=is_last)
        number, every = version.head.number, self._settings.client.evaluate_every
        if self._alone is None or self._alone.model.weights is None:
            return
        if number != self._measured if is_last else is_due(number, self._measured, every):
            self._measured = number
            await self._alone.measure(client, version)

    async def trained(self, client: Client, version: Version, trained: Trained) -> None:
        """Before an update is sent."""
        if self._cross_site is not None and self._alone is None:
            since = version.head.number
            await self._cross_site.keep(client, since, since, lambda: weights_after(self._shared, version, trained))

    async def sent(self) -> None:
        """After it was."""
        if self._cross_site is not None:
            await self._cross_site.send()

    async def train_alone(self, client: Client, version: Version) -> None:
        """Train the site's own model for as long as the update on `version` was. The given one is as it was after."""
        if (alone := self._alone) is None:
            return
        before = await self._federation.run(self._shared.weights)
        try:
            await alone.train(version, client.heard().steps_per_second)
        finally:
            await self._federation.run(self._shared.load, before)
        weights, since = alone.model.weights, alone.model.since
        if self._cross_site is not None and weights is not None and since is not None:
            await self._cross_site.keep(client, version.head.number, since, lambda: weights)
            await self._cross_site.send()


def _copied(optimizer: Optimizer) -> Optimizer:
    parameters = {id(one): one for group in optimizer.param_groups for one in group["params"]}
    try:
        own = deepcopy(optimizer, dict(parameters))
        for name, value in vars(optimizer).items():  # L-BFGS has more than torch copies; `step` may be a scheduler's
            if name not in vars(own) and name != "step":
                setattr(own, name, deepcopy(value, dict(parameters)))
    except Exception as error:
        raise ConfigError(
            f"client.train_alone: it needs a copy of the optimizer, and {type(optimizer).__name__} cannot be copied: "
            f"{' '.join(str(error).split())[:200]}"
        ) from error
    return own

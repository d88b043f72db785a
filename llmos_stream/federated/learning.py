"""`FederatedLearning`: federated training from an ordinary, synchronous training loop.

fl = FederatedLearning(model, data_loader, optimizer)
for epoch in range(num_epochs):
    fl.train(epoch)
global_model = fl.get_global_model()
"""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from llmos_stream.config import Settings, settings_of
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.federated.beside import Beside, GivenTask
from llmos_stream.federated.member import Member, Updates
from llmos_stream.federated.membership import kept_in
from llmos_stream.federated.update import Update
from llmos_stream.roles.aggregator import Initial
from llmos_stream.roles.client.personal import PersonalPart
from llmos_stream.training import LocalTrainer, Loss, default_loss
from llmos_stream.training.batches import Batches, reiterable
from llmos_stream.training.copies import copy_model, why_not_copied
from llmos_stream.training.hooks import Hook, hooks_of
from llmos_stream.training.local import EpochMetrics
from llmos_stream.training.local_steps import LocalSteps
from llmos_stream.training.metrics import Metric
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.training.personal import check_head_epochs, training_only
from llmos_stream.training.shared_model import LocalModel, SharedModel
from llmos_stream.training.site_evaluator import SiteEvaluator, ValidationData
from llmos_stream.training.states import load_state

logger = logging.getLogger(__name__)


class FederatedLearning(Member):
    """One client of a federation, driven by the caller's own loop: `train` an epoch, or `update` in a way of your own.

    With `broker.bootstrap_servers` set (`LLMOS_BROKER__BOOTSTRAP_SERVERS`) it joins the federation
    that runs there; without, it is alone with an aggregator of its own in this process, and `model`
    is version 0.

    `data_loader` is any iterable of batches that can be gone through once an epoch, or a function that gives one:
    `(inputs, targets)`, or mappings with labels, as Hugging Face models take them (see `training.batches`).
    `optimizer` is any torch optimiser over the model's parameters: new weights are copied into the parameters in place,
    so it keeps its settings and its state. `loss(outputs, targets)` is by default the loss that the outputs carry, or
    else cross entropy. On `validation`, batches that you hold back, each version (`client.evaluate_every`) is measured
    before it is trained on, and the federation told what came out, with what `metrics` give beside the loss and the
    accuracy (see `training.metrics`). What is not shared (`task.share`) is kept in the client's state folder, and is in
    `model` again after a restart. `hooks` are called at fixed points of the training (see `training.hooks`);
    the settings `client.proximal_mu`, `client.max_grad_norm`, `client.local_steps`, `client.head_epochs` and
    `client.train_alone` (with a copy of the optimizer) hold for `train`. With `client.share_local` the model serves to
    measure what other sites have trained, before an update begins in it. `federation` and `broker` are short for the
    settings `federation.name` and `broker.bootstrap_servers`. `settings` are some by section, as in
    `{"codec": {"name": "int4"}}`, or a TOML file; the others are read from the environment and `$LLMOS_CONFIG`. A whole
    `Settings` takes the place of all three. Where it is alone, version 0 has the weights of the safetensors file
    `init`, or of the version `init_from` of the registry (`NAME` or `NAME:VERSION`), in place of those of `model`.

    Raises ConfigError for settings that make no sense, TaskError for a model or batches that cannot be used, and
    BrokerUnavailable when no broker answers; `train` raises NotWanted where the operator does not want this client.
    Close it, or use it as a context manager; at the latest it is closed when the process ends.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Batches | None = None,
        optimizer: Optimizer | None = None,
        *,
        loss: Loss = default_loss,
        hooks: Sequence[Hook] = (),
        validation: Batches | None = None,
        metrics: Mapping[str, Metric] | None = None,
        federation: str | None = None,
        broker: str | Sequence[str] | None = None,
        init: Path | str | None = None,
        init_from: str | None = None,
        settings: Settings | Mapping[str, Any] | Path | str | None = None,
    ) -> None:
        named = {"federation.name": federation, "broker.bootstrap_servers": broker}
        start = {"aggregator.init": init, "aggregator.init_from": init_from}
        self._settings = settings_of(settings, named | start)
        if self._settings.broker.bootstrap_servers is not None and (init or init_from):
            raise ConfigError(
                "init, init_from: this script is a client, and the federation's aggregator makes version 0: "
                "llmos-stream aggregator --init"
            )
        client, share = self._settings.client, self._settings.task.share
        hooks = (*hooks, *hooks_of(client, share))
        self._steps = None if data_loader is None else LocalSteps(reiterable(data_loader), 1, client.local_steps)
        self._trainer = None if optimizer is None else LocalTrainer(model, optimizer, loss, hooks)
        self._local = SharedModel(model, share, hooks)
        self._head_epochs, self._share = client.head_epochs, share
        if client.head_epochs:
            check_head_epochs(model, share)
        personal = PersonalPart(kept_in(self._settings), share)
        personal.restore(model)
        if (why := why_not_copied(model)) is not None:
            logger.warning("%s", why)
        data: ValidationData | None = None
        if validation is not None:
            held_back = reiterable(validation)
            data = ValidationData(lambda: held_back, lambda: metrics or {})
        beside = None
        if client.train_alone or client.share_local:
            alone: tuple[GivenTask, LocalModel] | None = None
            if client.train_alone and data_loader is not None and optimizer is not None and data is not None:
                given = GivenTask(self._settings, model, data_loader, optimizer, loss)
                alone = given, given.trained_by(hooks)
            beside = Beside(self._settings, self._local, loss, data, alone)
        super().__init__(self._settings, self._local, partial(Initial.of, model, share), beside)
        self._joined.keep = partial(personal.keep, model)
        if data is not None:
            self._joined.evaluator = SiteEvaluator(self._local, loss, data, client.evaluate_every)

    def train(self, epoch: int) -> dict[str, float | int | str]:
        """Take the newest version, train one epoch (or `client.local_steps`) on it here, and publish the difference.

        Returns the epoch's metrics: `epoch`, `loss`, `accuracy` (where the model classifies),
        `num_examples`, `version` (trained on), `sequence`, `sent_bytes`, `raw_bytes` and
        `train_seconds`; and of all its updates so far how many were `counted`, `dropped` (with `why`, the last reason)
        or are still `waiting` to be. When so many versions came meanwhile that the update could not count, it is not
        sent, and `rejected`, the reason, is there in place of `sequence` and the bytes; the next call
        goes on from the newest. Once the run has ended nothing is trained, the model has the newest version, and the
        answer is `epoch`, `version` and `finished`, the reason; that is there in place of `sequence` and the bytes
        where the run ended meanwhile. Where the version was measured on the `validation` data, `validation_loss` and so
        on are there too. An exception in training leaves the object usable.

        While the broker does not answer this waits, and says so in the log; an interrupt ends it.
        """
        trainer, steps = self._trainer, self._steps
        if trainer is None or steps is None:
            raise TaskError("train needs the data_loader and the optimizer; with a loop of your own use update()")
        with self.update() as update:
            over, measured = update.finished, _of_validation(update.evaluation)
            if over:
                return {"epoch": epoch, **measured, "version": update.version, "finished": over}
            base = update.start
            done = self._trained(trainer, steps)
            update.num_examples = steps.weight(done.num_examples)
            update.metrics = done.metrics | steps.done(done.steps, done.seconds)
        if base is not None and not update.finished:
            self._membership.run(self._membership.train_alone(base.version))
        told: dict[str, float | int | str] = {
            "epoch": epoch,
            **measured,
            **update.metrics,
            "num_examples": update.num_examples,
            "version": update.version,
            "train_seconds": update.seconds,
            **self.outcomes,
        }
        if update.finished:
            return {**told, "finished": update.finished}
        if update.rejected:
            return {**told, "rejected": update.rejected}
        return {
            **told,
            "sequence": update.sequence or 0,
            "sent_bytes": update.sent_bytes,
            "raw_bytes": update.raw_bytes,
        }

    def _trained(self, trainer: LocalTrainer, steps: LocalSteps) -> EpochMetrics:
        try:
            for batches in steps.whole(self._head_epochs):
                with training_only(trainer.model, self._share, own=True):
                    trainer.run_epoch(batches)
            (batches,) = steps.passes(self._membership.fastest)
            with training_only(trainer.model, self._share, own=False) if self._head_epochs else nullcontext():
                return trainer.run_epoch(batches)
        except BaseException:
            steps.broke_off()
            raise

    def update(self) -> Update:
        """One update by your own loop: `with fl.update() as update:`, or `async with`. See `Update`."""
        return Update(self._joined, self)

    def updates(self) -> Updates:
        """One update after the other, until the run has ended: `for update in fl.updates():`, or `async for`.

        Each is sent when the loop goes on to the next. A loop that is left by `break` or an exception does not send the
        one at hand: call its `send()` before.
        """
        return Updates(self.update)

    def get_global_model(self) -> nn.Module:
        """A copy of the model with the newest version's weights; what is not shared is this client's own.

        Raises:
            TaskError: the model cannot be copied, as was logged at the start.
        """
        clone = copy_model(self._local.model)
        self.load_into(clone)
        return clone

    def global_state(self) -> dict[str, Tensor]:
        """The newest version as a state dict of the plain model: for `load_state_dict`, or to be saved.

        What is not shared is this client's own. Wrappers (`torch.compile`, `DataParallel`) are not in the names.
        """
        return {name: tensor.clone() for name, tensor in self._local.state(self._joined.newest().weights).items()}

    def load_into(self, model: nn.Module) -> None:
        """Copy the newest version into a model of the same kind, in place, wrapped or not.

        Raises:
            TaskError: it is a model of another kind. Nothing was written then.
        """
        load_state(model, self._local.state(self._joined.newest().weights))


def _of_validation(evaluation: Evaluation | None) -> dict[str, float | int | str]:
    found = {} if evaluation is None else evaluation.metrics
    return {f"validation_{name}": value for name, value in found.items()}

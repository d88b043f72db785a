"""`FederatedLearning`: federated training from an ordinary, synchronous training loop.

fl = FederatedLearning(model, data_loader, optimizer)
for epoch in range(num_epochs):
    fl.train(epoch)
global_model = fl.get_global_model()
"""

import logging
import weakref
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn
from torch.optim import Optimizer

from llmos_stream import __version__
from llmos_stream.config import Settings, settings_of
from llmos_stream.errors import ConfigError, Rejected
from llmos_stream.federated.membership import Membership
from llmos_stream.log.versions import Version
from llmos_stream.roles.aggregator import Initial
from llmos_stream.telemetry.tracing import Tracer, open_tracer, span, tracing_to
from llmos_stream.training import LocalTrainer, Loss, default_loss
from llmos_stream.training.batches import Batches, reiterable
from llmos_stream.training.copies import copy_model, why_not_copied
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.states import load_state

logger = logging.getLogger(__name__)


class FederatedLearning:
    """One client of a federation, driven by the caller's own loop.

    With `broker.bootstrap_servers` set (`LLMOS_BROKER__BOOTSTRAP_SERVERS`) it joins the federation
    that runs there; without, it is alone with an aggregator of its own in this process, and `model`
    is version 0.

    `data_loader` is any iterable of batches that can be gone through once an epoch, or a function that gives one:
    `(inputs, targets)`, or mappings with labels, as Hugging Face models take them (see `training.batches`).
    `optimizer` is any torch optimiser over the model's parameters: new weights are copied into the
    parameters in place, so it keeps its settings and its state. `loss(outputs, targets)` is by default the loss that
    the outputs carry, or else cross entropy. `federation` and `broker` are short for the
    settings `federation.name` and `broker.bootstrap_servers`. `settings` are some by section, as in
    `{"codec": {"name": "int4"}}`, or a TOML file; the others are read from the environment and `$LLMOS_CONFIG`. A whole
    `Settings` takes the place of all three. Where it is alone, version 0 has the weights of the safetensors file
    `init`, or of the version `init_from` of the registry (`NAME` or `NAME:VERSION`), in place of those of `model`.

    Raises ConfigError for settings that make no sense, TaskError for a model or batches that cannot be used, and
    BrokerUnavailable when no broker answers.
    Close it, or use it as a context manager; at the latest it is closed when the process ends.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: Batches,
        optimizer: Optimizer,
        *,
        loss: Loss = default_loss,
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
        self._batches = reiterable(data_loader)
        self._local = LocalModel(LocalTrainer(model, optimizer, loss), self._settings.task.share)
        if (why := why_not_copied(model)) is not None:
            logger.warning("%s", why)
        facts = {"role": "client", "federation": self._settings.federation.name, "version": __version__}
        self._tracer = open_tracer(self._settings.tracing, facts)
        try:
            with tracing_to(self._tracer):
                initial = partial(Initial.of, model, self._settings.task.share)
                self._membership = Membership(self._settings, self._local.layout, initial)
        except BaseException:
            _close_tracer(self._tracer)
            raise
        self._finalizer = weakref.finalize(self, _leave, self._membership, self._tracer)

    @property
    def finished(self) -> str | None:
        """Why the federation's run has ended; None while it goes on."""
        return self._membership.finished

    def train(self, epoch: int) -> dict[str, float | int | str]:
        """Take the newest version, train one epoch on it here, and publish the difference.

        Returns the epoch's metrics: `epoch`, `loss`, `accuracy` (where the model classifies),
        `num_examples`, `version` (trained on), `sequence`, `sent_bytes`, `raw_bytes` and
        `train_seconds`; and of all its updates so far how many were `counted`, `dropped` (with `why`, the last reason)
        or are still `waiting` to be. When so many versions came meanwhile that the update could not count, it is not
        sent, and `rejected`, the reason, is there in place of `sequence` and the bytes; the next call
        goes on from the newest. Once the run has ended nothing is trained, and the answer is `epoch`,
        `version` and `finished`, the reason. An exception in training leaves the object usable.

        While the broker does not answer this waits, and says so in the log; an interrupt ends it.
        """
        with tracing_to(self._tracer):
            version = self._membership.next_version()
            if self.finished:
                return {"epoch": epoch, "version": version.head.number, "finished": self.finished}
            with self._membership.update_span(version):
                return self._update(epoch, version)

    def _update(self, epoch: int, version: Version) -> dict[str, float | int | str]:
        with span("client.train"):
            trained = self._local.train(version.weights, version.head.number, [self._batches])
        told: dict[str, float | int | str] = {
            "epoch": epoch,
            **trained.metrics,
            "num_examples": trained.num_examples,
            "version": version.head.number,
            "train_seconds": trained.seconds,
        }
        try:
            published = self._membership.publish(trained)
        except Rejected as error:
            return {**told, **self._membership.outcomes(), "rejected": str(error)}
        return {
            **told,
            **self._membership.outcomes(),
            "sequence": published.head.sequence,
            "sent_bytes": published.sent_bytes,
            "raw_bytes": published.raw_bytes,
        }

    def get_global_model(self) -> nn.Module:
        """A copy of the model with the newest version's weights; what is not shared is this client's own.

        Raises:
            TaskError: the model cannot be copied, as was logged at the start.
        """
        clone = copy_model(self._local.trainer.model)
        self.load_into(clone)
        return clone

    def global_state(self) -> dict[str, Tensor]:
        """The newest version as a state dict of the plain model: for `load_state_dict`, or to be saved.

        What is not shared is this client's own. Wrappers (`torch.compile`, `DataParallel`) are not in the names.
        """
        return {name: tensor.clone() for name, tensor in self._local.state(self._newest().weights).items()}

    def load_into(self, model: nn.Module) -> None:
        """Copy the newest version into a model of the same kind, in place, wrapped or not.

        Raises:
            TaskError: it is a model of another kind. Nothing was written then.
        """
        load_state(model, self._local.state(self._newest().weights))

    def _newest(self) -> Version:
        with tracing_to(self._tracer):
            return self._membership.newest()

    def close(self) -> None:
        """Leave the federation and release everything. May be called more than once."""
        self._finalizer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _leave(membership: Membership, tracer: Tracer | None) -> None:
    try:
        membership.close()
    finally:
        _close_tracer(tracer)


def _close_tracer(tracer: Tracer | None) -> None:
    if tracer is not None:
        tracer.close()

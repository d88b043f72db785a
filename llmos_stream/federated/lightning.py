"""A callback for Lightning: `Trainer(callbacks=[FederatedCallback()])` trains in a federation.

The newest version comes into the module when a round begins, and an update goes out at its end. Optimisers, precision,
accumulation and all the rest are the Trainer's.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from llmos_stream.errors import install
from llmos_stream.federated.learning import FederatedLearning
from llmos_stream.federated.rounds import Every, Rounds
from llmos_stream.federated.update import Update
from llmos_stream.training.batches import num_examples_in

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise ImportError(f"the callback needs Lightning; {install('lightning')}") from None


class FederatedCallback(Callback):
    """Takes part in a federation while a Lightning Trainer fits a module. The Trainer stops when the run has ended.

    Args:
        every: A round is one `epoch`, or so many steps of the optimiser.
        part: Gives what is shared of the module: the module itself, or `lambda module: module.model`, where other
            clients train that model without Lightning, so that its names are theirs.
        options: As of `FederatedLearning`: `federation`, `broker`, `settings` and so on.
    """

    def __init__(
        self, *, every: Every = "epoch", part: Callable[[Any], nn.Module] | None = None, **options: Any
    ) -> None:
        self._rounds = Rounds(every, options)
        self._part = part
        self._steps = 0

    @property
    def learning(self) -> FederatedLearning:
        """The client, while the Trainer fits."""
        return self._rounds.learning

    @property
    def last(self) -> Update | None:
        """The update that was sent last."""
        return self._rounds.last

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rounds.join(self._model(pl_module), trainer.world_size)
        self._steps = trainer.global_step

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        # The Trainer has divided it by the number of batches that it accumulates.
        self._rounds.trained(
            num_examples_in(batch),
            loss if isinstance(loss, Tensor) else None,
            1 / trainer.accumulate_grad_batches,
        )
        if trainer.global_step > self._steps:
            self._steps = trainer.global_step
            self._rounds.stepped()
        if self._rounds.finished:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._rounds.every == "epoch":
            self._rounds.send()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rounds.end(self._model(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._rounds.leave()

    def _model(self, module: LightningModule) -> nn.Module:
        return module if self._part is None else self._part(module)

    def _begin(self, trainer: Trainer) -> None:
        if not self._rounds.begin():
            trainer.should_stop = True

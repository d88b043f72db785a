"""A client's model between versions: takes weights in, trains on them, tells what changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.training.local import Batch, EpochMetrics, LocalTrainer
from llmos_stream.training.sharing import load_, shared_tensors


@dataclass(frozen=True, slots=True)
class Trained:
    """An update before it is encoded: a delta (flat, float32), what it was trained on, and how that went.

    `seconds` is how long the training took, or would have taken on the device that the client stands for.
    `stopped` tells that the training was cut short: the update is not to be sent.
    """

    delta: Tensor
    base_version: int
    num_examples: int
    metrics: Mapping[str, float]
    seconds: float
    stopped: bool = False


class LocalModel:
    """A trainer's model, with its shared tensors seen as one flat vector."""

    def __init__(self, trainer: LocalTrainer, share: str) -> None:
        self.trainer = trainer
        self._share = share
        self.layout = Layout.of(self._shared())

    def weights(self) -> Tensor:
        """The shared tensors as they are now: a new flat float32 vector."""
        return self.layout.flatten(self._shared())

    def load(self, weights: Tensor) -> Tensor:
        """Copy a flat vector into the model, in place, and return what the model made of it.

        That differs from `weights` where the model is of lower precision than float32; deltas are taken
        from it, so that this rounding is not mistaken for training.
        """
        load_(self._shared(), self.layout.unflatten(weights))
        return self.weights()

    def train(
        self,
        weights: Tensor,
        base_version: int,
        epochs: Sequence[Iterable[Batch]],
        should_stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """Start from the weights of a version, train on each of `epochs` in turn, and return the difference."""
        base = self.load(weights)
        done: list[EpochMetrics] = []
        for batches in epochs:
            done.append(self.trainer.run_epoch(batches, should_stop=should_stop))
            if done[-1].stopped:
                break
        last = done[-1]
        metrics = {"loss": last.loss} | ({} if last.accuracy is None else {"accuracy": last.accuracy})
        return Trained(
            delta=self.weights().sub_(base),
            base_version=base_version,
            num_examples=last.num_examples,
            metrics=metrics,
            seconds=sum(epoch.seconds for epoch in done),
            stopped=last.stopped,
        )

    def _shared(self) -> dict[str, Tensor]:
        return shared_tensors(self.trainer.model, self._share)

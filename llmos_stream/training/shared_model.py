"""A client's model between versions: takes weights in, trains on them, tells what changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_stream.codec import is_finite
from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.training.local import EpochMetrics, LocalTrainer
from llmos_stream.training.sharing import shared_layout, shared_tensors
from llmos_stream.training.states import load_, state_with
from llmos_stream.types import TensorSpec


@dataclass(frozen=True, slots=True)
class Trained:
    """An update before it is encoded: a delta (flat, float32), what it was trained on, and how that went.

    The delta is that of the parameters; whoever encodes it may write over it. `buffers` (flat, float32) are the values
    of the buffers, where there are any.

    `seconds` is how long the training took, or would have taken on the device that the client stands for.
    `stopped` tells that the training was cut short: the update is not to be sent.
    """

    delta: Tensor
    base_version: int
    num_examples: int
    metrics: Mapping[str, float]
    seconds: float
    stopped: bool = False
    buffers: Tensor | None = None


class LocalModel:
    """A trainer's model, with its shared tensors seen as one flat vector."""

    def __init__(self, trainer: LocalTrainer, share: str) -> None:
        self.trainer = trainer
        self._share = share
        self.layout = shared_layout(trainer.model, share)

    def weights(self) -> Tensor:
        """The shared tensors as they are now: a new flat float32 vector."""
        return self.layout.flatten(self._shared())

    def load(self, weights: Tensor) -> Tensor:
        """Copy a flat vector into the model, in place, and return what the model made of it: `weights`, where it can.

        That differs from `weights` where the model is of lower precision than float32; deltas are taken
        from it, so that this rounding is not mistaken for training.

        Raises:
            TaskError: A tensor's own dtype cannot hold its values.
        """
        tensors, values = self._shared(), self.layout.views(weights)
        load_(tensors, values)
        if all(_same_bits(tensors[name], value) for name, value in values.items()):
            return weights  # a copy would be as large as the model, for as long as it trains
        loaded = self.weights()
        if not is_finite(loaded) and (marked := loaded.isfinite() != weights.isfinite()).any():
            spec, at = self._first(marked)
            raise TaskError(f"the version has {float(weights[at]):g} in {spec.name}, which {spec.dtype} cannot hold")
        return loaded

    def state(self, weights: Tensor) -> dict[str, Tensor]:
        """See `state_with`."""
        return state_with(self.trainer.model, self.layout, weights)

    def train(
        self,
        weights: Tensor,
        base_version: int,
        epochs: Sequence[Iterable[Batch]],
        should_stop: Callable[[], bool] | None = None,
    ) -> Trained:
        """Start from the weights of a version, train on each of `epochs` in turn, and return the difference.

        Raises:
            TaskError: A tensor is no longer finite.
        """
        base = self.load(weights)
        done: list[EpochMetrics] = []
        for batches in epochs:
            done.append(self.trainer.run_epoch(batches, should_stop=should_stop))
            if done[-1].stopped:
                break
        last = done[-1]
        metrics = {"loss": last.loss} | ({} if last.accuracy is None else {"accuracy": last.accuracy})
        delta, buffers = self._update(base, weights)
        return Trained(
            delta=delta,
            base_version=base_version,
            num_examples=last.num_examples,
            metrics=metrics,
            seconds=sum(epoch.seconds for epoch in done),
            stopped=last.stopped,
            buffers=buffers,
        )

    def _update(self, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What was added to the parameters of `base`, which the model had before, and the values of its buffers.

        Nothing was added where an infinity is still the same. A buffer that was not changed is as in `weights`,
        whatever the model's precision makes of that.

        Raises:
            TaskError: A change is not finite.
        """
        (delta, buffers), (before, measured) = self.layout.parts(self.weights()), self.layout.parts(base)
        unchanged = buffers.view(torch.int32) == measured.view(torch.int32)
        broken = (unchanged | buffers.isfinite()).logical_not()
        if not is_finite(delta.sub_(before)) or broken.any():
            after = self.weights()
            delta.masked_fill_(self.layout.parts(after)[0].view(torch.int32) == before.view(torch.int32), 0.0)
            if (marked := torch.cat([delta.isfinite().logical_not(), broken])).any():
                spec, at = self._first(marked)
                was, became = float(base[at]), float(after[at])
                raise TaskError(f"training made {spec.name} not finite: {was:g} became {became:g}; lower client.lr")
        return delta, torch.where(unchanged, self.layout.parts(weights)[1], buffers)

    def _first(self, marked: Tensor) -> tuple[TensorSpec, int]:
        """The first element of the flat vector that is marked: in which tensor, and where in the vector."""
        at, end = int(marked.nonzero()[0]), 0
        for spec in self.layout.tensors:
            end += spec.numel
            if at < end:
                break
        return spec, at

    def _shared(self) -> dict[str, Tensor]:
        return shared_tensors(self.trainer.model, self._share)


def _same_bits(tensor: Tensor, value: Tensor) -> bool:
    """Whether a live tensor holds just these float32 values."""
    return tensor.dtype == torch.float32 and torch.equal(tensor.cpu().view(torch.int32), value.view(torch.int32))

"""A client's model between versions: takes weights in, trains on them, tells what changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmos_stream.codec import Layout, is_finite
from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.training.changes import change_of, first_marked
from llmos_stream.training.hooks import Hook
from llmos_stream.training.local import EpochMetrics, LocalTrainer
from llmos_stream.training.personal import training_only
from llmos_stream.training.sharing import shared_layout, shared_tensors
from llmos_stream.training.states import load_, state_with


@dataclass(frozen=True, slots=True)
class Trained:
    """An update before it is encoded: a delta (flat, float32), what it was trained on, and how that went.

    The delta is that of the parameters; whoever encodes it may write over it. `buffers` (flat, float32) are the values
    of the buffers, where there are any.

    `seconds` is how long the training took, or would have taken on the device that the client stands for.
    `steps` are those that the training took, `share` how much of a whole training they are. `stopped` tells that it was
    cut short: the update is not to be sent.
    """

    delta: Tensor
    base_version: int
    num_examples: int
    metrics: Mapping[str, float]
    seconds: float
    stopped: bool = False
    buffers: Tensor | None = None
    steps: int = 0
    share: float = 1.0


class SharedModel:
    """A model, with its shared tensors seen as one flat vector."""

    advice = "lower the learning rate"
    """What to do where training has made a tensor not finite."""

    def __init__(self, model: nn.Module, share: str, hooks: Sequence[Hook] = ()) -> None:
        self.model = model
        self._share = share
        self._hooks = hooks
        self.layout = shared_layout(model, share)

    def weights(self) -> Tensor:
        """The shared tensors as they are now: a new flat float32 vector.

        Raises:
            TaskError: They are others than those that joined.
        """
        tensors = self._shared()
        if (changed := _changed(self.layout, tensors)) is not None:
            raise TaskError(
                f"{changed} since the model joined: let it see a batch before it joins, so that observers and the like "
                "have their shapes, or leave it out of task.share"
            )
        return self.layout.flatten(tensors)

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
            spec, at = first_marked(self.layout, marked)
            raise TaskError(f"the version has {float(weights[at]):g} in {spec.name}, which {spec.dtype} cannot hold")
        return loaded

    def begin(self, weights: Tensor, version: int) -> Tensor:
        """`load` the weights of a version, to train on them."""
        base = self.load(weights)
        for hook in self._hooks:
            hook.before_training(self.model, version)
        return base

    def state(self, weights: Tensor) -> dict[str, Tensor]:
        """See `state_with`."""
        return state_with(self.model, self.layout, weights)

    def change(self, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What training has made of the version `weights`, which `load` has answered with `base`. See `change_of`."""
        delta, buffers = change_of(self.layout, base, weights, self.weights, self.advice)
        if self._hooks:
            views = self.layout.parameter_views(delta)
            for hook in self._hooks:
                hook.after_training(views)
        return delta, buffers

    def _shared(self) -> dict[str, Tensor]:
        return shared_tensors(self.model, self._share)


class LocalModel(SharedModel):
    """A trainer's model."""

    advice = "lower client.lr"

    def __init__(self, trainer: LocalTrainer, share: str) -> None:
        super().__init__(trainer.model, share, trainer.hooks)
        self.trainer = trainer

    def train(
        self,
        weights: Tensor,
        base_version: int,
        epochs: Sequence[Iterable[Batch]],
        should_stop: Callable[[], bool] | None = None,
        own_first: Sequence[Iterable[Batch]] = (),
    ) -> Trained:
        """Start from the weights of a version, train on each of `epochs` in turn, and return the difference.

        With `own_first` only what is a site's own is trained on that before, and after it only what is shared (FedRep).

        Raises:
            TaskError: A tensor is no longer finite.
        """
        base = self.begin(weights, base_version)
        done: list[EpochMetrics] = []
        for number, batches in enumerate([*own_first, *epochs]):
            is_own = number < len(own_first)
            with training_only(self.model, self._share, own=is_own) if own_first else nullcontext():
                done.append(self.trainer.run_epoch(batches, should_stop=should_stop))
            if done[-1].stopped:
                break
        last = done[-1]
        delta, buffers = self.change(base, weights)
        return Trained(
            delta=delta,
            base_version=base_version,
            num_examples=last.num_examples,
            metrics=last.metrics,
            steps=sum(epoch.steps for epoch in done[len(own_first) :]),
            seconds=sum(epoch.seconds for epoch in done),
            stopped=last.stopped,
            buffers=buffers,
        )


def _changed(layout: Layout, tensors: Mapping[str, Tensor]) -> str | None:
    """Which tensor is not as the layout says, if any."""
    shapes = {spec.name: spec.shape for spec in layout.tensors}
    for name in [*shapes, *tensors]:
        if name not in tensors or name not in shapes:
            return f"{name} has {'come' if name in tensors else 'gone'}"
        if (now := tuple(tensors[name].shape)) != shapes[name]:
            return f"{name} has become of shape {now}, from {shapes[name]},"
    return None


def _same_bits(tensor: Tensor, value: Tensor) -> bool:
    """Whether a live tensor holds just these float32 values."""
    return tensor.dtype == torch.float32 and torch.equal(tensor.cpu().view(torch.int32), value.view(torch.int32))

"""Training and evaluating one model on one machine, whatever the model and wherever its batches come from.

A batch is `(inputs, targets)`. Inputs are a tensor, a sequence of them (`model(*inputs)`) or a mapping
(`model(**inputs)`); targets are a tensor whose first dimension counts the examples. The loss is
`loss(outputs, targets)`, one number, the mean over the batch.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from llmos_stream.config import RuntimeSettings
from llmos_stream.errors import TaskError

Inputs = Tensor | Sequence[Any] | Mapping[str, Any]
Batch = tuple[Inputs, Tensor]
Loss = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """What one epoch did. `loss` is the mean over examples, as seen while training.

    `accuracy` is None unless the model classifies (see `LocalTrainer`). `seconds` is wall time on a
    monotonic clock. `stopped` tells that `should_stop` ended the epoch early.
    """

    loss: float
    accuracy: float | None
    num_examples: int
    seconds: float
    stopped: bool


def use_threads(settings: RuntimeSettings) -> None:
    """Set torch's threads for this process, where the settings name a number."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)


class LocalTrainer:
    """Trains `model` in place with `optimizer`, on the device of the model's first parameter.

    Accuracy is counted where the outputs are logits of shape (N, C) or (N, C, ...) with C of two or more,
    and the targets are class numbers of shape (N) or (N, ...). Negative targets are padding: they are not
    counted (cross entropy's own `ignore_index` is -100).
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, loss: Loss = cross_entropy) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss

    def run_epoch(self, batches: Iterable[Batch], *, should_stop: Callable[[], bool] | None = None) -> EpochMetrics:
        """Train on each batch once and return what was measured on the way.

        Each module is back in its own mode when the epoch ends.

        Args:
            batches: What to train on.
            should_stop: Asked after each batch, so that at least one is trained.

        Raises:
            TaskError: There is no batch, a batch has the wrong form, or the loss is not finite. In the last case no
                step was taken on the batch, but the weights are those that led to it: load a good version.
        """
        started = perf_counter()
        device = _device_of(self.model)
        tally = _Tally()
        stopped = False
        with _mode(self.model, training=True):
            for number, batch in enumerate(batches, start=1):
                self.optimizer.zero_grad()
                outputs, targets, loss = _forward(self.model, self.loss, batch, device, number)
                value = float(loss.detach())
                if not math.isfinite(value):
                    raise TaskError(f"the loss became {value} in batch {number}; lower client.lr or check the data")
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
                self.optimizer.step()
                tally.add(outputs, targets, value)
                if should_stop is not None and should_stop():
                    stopped = True
                    break
        self.optimizer.zero_grad()  # a client that waits for the next version need not hold gradients
        loss_mean, accuracy = tally.result()
        seconds = perf_counter() - started
        return EpochMetrics(loss_mean, accuracy, tally.num_examples, seconds, stopped)


def evaluate(model: nn.Module, batches: Iterable[Batch], loss: Loss = cross_entropy) -> dict[str, float]:
    """`loss`, `num_examples` and, where the model classifies, `accuracy` over all batches; the model is not changed.

    Runs in eval mode without gradients; each module is back in its own mode afterwards. A loss that is not
    finite is returned as it is, because it is the answer.

    Raises:
        TaskError: There is no batch, or a batch has the wrong form.
    """
    device = _device_of(model)
    tally = _Tally()
    with _mode(model, training=False), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            outputs, targets, value = _forward(model, loss, batch, device, number)
            tally.add(outputs, targets, float(value))
    loss_mean, accuracy = tally.result()
    metrics = {"loss": loss_mean, "num_examples": float(tally.num_examples)}
    return metrics if accuracy is None else {**metrics, "accuracy": accuracy}


class _Tally:
    """Sums over the batches. Correct answers stay on the device, so that counting them does not wait for it."""

    def __init__(self) -> None:
        self.num_examples = 0
        self._loss_sum = 0.0
        self._correct: Tensor | None = None
        self._counted: Tensor | None = None

    def add(self, outputs: object, targets: Tensor, loss: float) -> None:
        self.num_examples += len(targets)
        self._loss_sum += loss * len(targets)
        if isinstance(outputs, Tensor) and _are_logits(outputs, targets):
            counted = targets >= 0
            correct = (outputs.detach().argmax(dim=1) == targets).sum()  # never true of padding
            self._correct = correct if self._correct is None else self._correct + correct
            self._counted = counted.sum() if self._counted is None else self._counted + counted.sum()

    def result(self) -> tuple[float, float | None]:
        if not self.num_examples:
            raise TaskError("there is no batch: the loader is empty, or a generator that has already been used up")
        accuracy = None
        if self._correct is not None and self._counted is not None and int(self._counted):
            accuracy = int(self._correct) / int(self._counted)
        return self._loss_sum / self.num_examples, accuracy


def _are_logits(outputs: Tensor, targets: Tensor) -> bool:
    return (
        not (targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool)
        and outputs.ndim == targets.ndim + 1
        and outputs.shape[1] >= 2
        and (outputs.shape[0], *outputs.shape[2:]) == tuple(targets.shape)
    )


def _forward(model: nn.Module, loss: Loss, batch: Any, device: torch.device, number: int) -> tuple[Any, Tensor, Tensor]:
    if not isinstance(batch, Sequence) or len(batch) != 2 or not isinstance(batch[1], Tensor):
        raise TaskError(f"batch {number} is not a pair (inputs, targets) with targets a tensor")
    inputs, targets = batch[0], batch[1].to(device, non_blocking=True)
    if not targets.ndim or not len(targets):
        raise TaskError(f"batch {number} has no examples: its targets have shape {tuple(targets.shape)}")
    match inputs:
        case Tensor():
            outputs = model(_move(inputs, device))
        case Mapping():
            outputs = model(**{name: _move(value, device) for name, value in inputs.items()})
        case _:
            outputs = model(*(_move(value, device) for value in inputs))
    value = loss(outputs, targets)
    if value.numel() != 1:
        raise TaskError(f"the loss must be one number, the mean over the batch; got shape {tuple(value.shape)}")
    return outputs, targets, value


def _move(value: Any, device: torch.device) -> Any:
    return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@contextmanager
def _mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    before = [(module, module.training) for module in model.modules()]
    model.train(training)
    try:
        yield
    finally:
        for module, was_training in before:
            module.training = was_training

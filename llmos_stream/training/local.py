"""Training and evaluating one model on one machine, whatever the model and wherever its batches come from.

What a batch may look like: see `batches`. The loss is `loss(outputs, targets)`, one number, the mean over the batch.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from llmos_stream.config import RuntimeSettings
from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch, Prepared, call, parts_of
from llmos_stream.training.hooks import Hook
from llmos_stream.training.losses import Loss, check_classes, default_loss, logits_of
from llmos_stream.training.metrics import Metric, Metrics


@dataclass(frozen=True, slots=True)
class EpochMetrics:
    """What one epoch did. `loss` is the mean over examples, as seen while training.

    `accuracy` is None unless the model classifies (see `LocalTrainer`). `seconds` is wall time on a
    monotonic clock. `steps` are the batches that were trained on. `stopped` tells that `should_stop` ended the epoch
    early.
    """

    loss: float
    accuracy: float | None
    num_examples: int
    steps: int
    seconds: float
    stopped: bool

    @property
    def metrics(self) -> dict[str, float]:
        """What an update says of it."""
        return {"loss": self.loss} | ({} if self.accuracy is None else {"accuracy": self.accuracy})


def use_threads(settings: RuntimeSettings) -> None:
    """Set torch's threads for this process, where the settings name a number."""
    if settings.torch_threads:
        torch.set_num_threads(settings.torch_threads)


class LocalTrainer:
    """Trains `model` in place with `optimizer`, on the device of the model's first parameter.

    An optimiser whose `step` demands a closure (L-BFGS) is given one. Accuracy is counted where the outputs are logits
    of shape (N, C) or (N, C, ...) with C of two or more, and the targets are class numbers of shape (N) or (N, ...).
    Negative targets are padding: they are not counted (cross entropy's own `ignore_index` is -100).
    """

    def __init__(
        self, model: nn.Module, optimizer: Optimizer, loss: Loss = default_loss, hooks: Sequence[Hook] = ()
    ) -> None:
        self.model = model
        self.optimizer = optimizer
        self.loss = loss
        self.hooks = hooks

    def run_epoch(self, batches: Iterable[Batch], *, should_stop: Callable[[], bool] | None = None) -> EpochMetrics:
        """Train on each batch once and return what was measured on the way.

        Each module is back in its own mode when the epoch ends.

        Args:
            batches: What to train on.
            should_stop: Asked after each batch, so that at least one is trained.

        Raises:
            TaskError: There is no batch, a batch has the wrong form, nothing can be trained, or the loss is not finite.
                In the last case no step was taken on the batch, but the weights are those that led to it: load a good
                version.
        """
        started = perf_counter()
        self._check()
        device = _device_of(self.model)
        tally = _Tally()
        stopped = False
        with _mode(self.model, training=True):
            for number, batch in enumerate(batches, start=1):
                tally.num_batches = number
                if not (parts := parts_of(self.model, batch, device, number)):
                    continue
                self._step(parts, number, tally)
                if should_stop is not None and should_stop():
                    stopped = True
                    break
        self.optimizer.zero_grad()  # a client that waits for the next version need not hold gradients
        loss_mean, accuracy = tally.result()
        seconds = perf_counter() - started
        return EpochMetrics(loss_mean, accuracy, tally.num_examples, tally.num_steps, seconds, stopped)

    def _check(self) -> None:
        """Raise TaskError where no step could change the model."""
        parameters = list(self.model.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            raise TaskError("all parameters of the model are frozen (requires_grad is False): nothing can be trained")
        held = {id(parameter) for group in self.optimizer.param_groups for parameter in group["params"]}
        if held.isdisjoint(map(id, parameters)):
            raise TaskError(
                "the optimizer holds no parameter of the model: "
                "it was made over another model, or over parameters that were replaced since"
            )

    def _step(self, parts: Sequence[Prepared], number: int, tally: "_Tally") -> None:
        """One step of the optimiser; `tally` takes in what the first pass through the parts gave."""
        num_examples, counted = sum(part.num_examples for part in parts), 0

        def closure() -> Tensor:
            nonlocal counted
            self.optimizer.zero_grad()
            total: Tensor | None = None
            for place, part in enumerate(parts):
                with torch.enable_grad():
                    new = _forward(self.model, self.loss, part)
                    loss = new.loss
                    for hook in self.hooks:
                        loss = hook.on_loss(loss, self.model)
                    if len(parts) > 1:
                        loss = loss * (part.num_examples / num_examples)
                if place == counted:
                    self._check_loss(new, number, is_first=not tally.num_examples)
                    tally.add(new)
                    counted += 1
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
                total = loss.detach() if total is None else total + loss.detach()
                del new, loss  # before the next part needs room
            for hook in self.hooks:
                hook.before_step(self.model)
            if total is None:
                raise ValueError("a batch has at least one part")
            return total

        if _demands_closure(self.optimizer):
            self.optimizer.step(closure)  # type: ignore[arg-type]  # torch says float, its own L-BFGS takes tensors
        else:
            closure()
            self.optimizer.step()
        tally.num_steps += 1

    def _check_loss(self, done: "_Forwarded", number: int, *, is_first: bool) -> None:
        if is_first:
            check_classes(self.loss, done.outputs, done.targets)
            if not done.loss.requires_grad:
                raise TaskError("the loss does not depend on a parameter: was it made under no_grad, or detached?")
        value = float(done.loss.detach())
        if not math.isfinite(value):
            bad = next(
                (n for n, p in self.model.named_parameters() if p.requires_grad and not p.isfinite().all()), None
            )
            held = "" if bad is None else f" ({bad} of the model is not finite)"
            raise TaskError(f"the loss became {value} in batch {number}{held}; lower client.lr or check the data")


def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    loss: Loss = default_loss,
    metrics: Mapping[str, Metric] | None = None,
) -> dict[str, float]:
    """`loss`, `num_examples` and, where the model classifies, `accuracy` over all batches, beside what `metrics` say.

    A metric called `accuracy` takes the place of that. The model is not changed. It runs in eval mode without
    gradients; each module is back in its own mode afterwards. A loss that is not finite is returned as it is, because
    it is the answer.

    Raises:
        TaskError: There is no batch, a batch has the wrong form, or a metric fails.
    """
    device = _device_of(model)
    tally, own = _Tally(), Metrics(metrics or {}, device)
    with _mode(model, training=False), torch.no_grad():
        for number, batch in enumerate(batches, start=1):
            tally.num_batches = number
            for part in parts_of(model, batch, device, number):
                done = _forward(model, loss, part)
                tally.add(done)
                own.add(done.outputs, done.targets, done.num_examples)
        loss_mean, accuracy = tally.result()
        found = {"loss": loss_mean, "num_examples": float(tally.num_examples)}
        return found | ({} if accuracy is None else {"accuracy": accuracy}) | own.results()


class _Forwarded(NamedTuple):
    outputs: Any
    targets: Any
    loss: Tensor
    num_examples: int


class _Tally:
    """Sums over the batches. Correct answers stay on the device, so that counting them does not wait for it."""

    def __init__(self) -> None:
        self.num_batches = 0
        self.num_steps = 0
        self.num_examples = 0
        self._loss_sum = 0.0
        self._correct: Tensor | None = None
        self._counted: Tensor | None = None

    def add(self, done: _Forwarded) -> None:
        self.num_examples += done.num_examples
        self._loss_sum += float(done.loss.detach()) * done.num_examples
        if (logits := logits_of(done.outputs, done.targets)) is not None:
            counted = done.targets >= 0
            correct = (logits.detach().argmax(dim=1) == done.targets).sum()  # never true of padding
            self._correct = correct if self._correct is None else self._correct + correct
            self._counted = counted.sum() if self._counted is None else self._counted + counted.sum()

    def result(self) -> tuple[float, float | None]:
        if not self.num_batches:
            raise TaskError("there is no batch: the loader is empty, or a generator that has already been used up")
        if not self.num_examples:
            raise TaskError(f"there is no example in {self.num_batches} batches")
        accuracy = None
        if self._correct is not None and self._counted is not None and int(self._counted):
            accuracy = int(self._correct) / int(self._counted)
        return self._loss_sum / self.num_examples, accuracy


def _forward(model: nn.Module, loss: Loss, batch: Prepared) -> _Forwarded:
    outputs = call(model, batch.inputs)
    value = loss(outputs, batch.targets)
    if not isinstance(value, Tensor) or value.numel() != 1:
        shape = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise TaskError(f"the loss must be one number in a tensor, the mean over the batch; got {shape}")
    return _Forwarded(outputs, batch.targets, value, batch.num_examples)


def _demands_closure(optimizer: Optimizer) -> bool:
    try:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
    except (TypeError, ValueError):
        return False
    return closure is not None and closure.default is inspect.Parameter.empty


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

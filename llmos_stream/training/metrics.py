"""Metrics of a task's own, over all batches of an evaluation.

| metric | what is told |
| --- | --- |
| a callable `metric(outputs, targets)` | the mean of what it gives for each batch, weighted by its examples |
| an object with `reset`, `update`, `compute` (torchmetrics) | what `compute` gives at the end |

Use the second for what is no mean of means, such as an F1 score or the area under a curve. `outputs` and `targets` are
as the loss gets them. What `compute` gives by name is told as `metric.name`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmos_stream.errors import LlmosError, TaskError
from llmos_stream.training.task_errors import described


class Gathered(Protocol):
    """A metric that looks at all batches before it says anything."""

    def reset(self) -> None: ...

    def update(self, outputs: Any, targets: Any, /) -> None: ...

    def compute(self) -> Any: ...


Metric = Callable[[Any, Any], Any] | Gathered
"""A callable, or an object as torchmetrics has them."""
_TAKEN = ("loss", "num_examples")


class Metrics:
    """Gathers what the metrics say of one evaluation.

    Raises:
        TaskError: There is no such metric, or its name is taken.
    """

    def __init__(self, metrics: Mapping[str, Metric], device: torch.device) -> None:
        self._means: dict[str, _Mean] = {}
        self._objects: dict[str, Any] = {}
        for name, metric in metrics.items():
            if name in _TAKEN:
                raise TaskError(f"metric {name}: that is measured anyway; give yours another name")
            if all(hasattr(metric, step) for step in ("reset", "update", "compute")):
                self._objects[name] = metric.to(device) if hasattr(metric, "to") else metric
                _said(name, self._objects[name].reset)
            elif callable(metric):
                self._means[name] = _Mean(metric)
            else:
                raise TaskError(
                    f"metric {name}: a {type(metric).__name__} is neither a callable nor has reset, update and compute"
                )

    def add(self, outputs: Any, targets: Any, num_examples: int) -> None:
        """Take in a batch."""
        for name, mean in self._means.items():
            mean.add(_number(name, _said(name, mean.metric, outputs, targets)), num_examples)
        for name, metric in self._objects.items():
            _said(name, metric.update, outputs, targets)

    def results(self) -> dict[str, float]:
        """What came out, by name."""
        found = {name: mean.result() for name, mean in self._means.items()}
        for name, metric in self._objects.items():
            value = _said(name, metric.compute)
            parts = {f"{name}.{part}": one for part, one in value.items()} if isinstance(value, Mapping) else {}
            found |= {part: _number(part, one) for part, one in (parts or {name: value}).items()}
        return found


class _Mean:
    def __init__(self, metric: Callable[[Any, Any], Any]) -> None:
        self.metric = metric
        self._sum = 0.0
        self._num_examples = 0

    def add(self, value: float, num_examples: int) -> None:
        self._sum += value * num_examples
        self._num_examples += num_examples

    def result(self) -> float:
        return self._sum / self._num_examples


def _said(name: str, step: Callable[..., Any], *arguments: Any) -> Any:
    """What a step of a metric gives; its errors name the metric."""
    try:
        return step(*arguments)
    except LlmosError:
        raise
    except Exception as error:
        raise TaskError(f"metric {name}: {described(error, '')}") from error


def _number(name: str, value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() != 1:
        raise TaskError(f"metric {name}: it gives a tensor of shape {tuple(value.shape)}, not one number")
    try:
        return float(value)
    except (TypeError, ValueError):
        raise TaskError(f"metric {name}: it gives a {type(value).__name__}, not a number") from None


class Perplexity:
    """`exp` of the mean cross entropy of all tokens, e^700 at most: more is soon no float."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Forget what was gathered."""
        self._sum, self._count = 0.0, 0

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch: logits [N, vocabulary] and tokens [N], or logits [N, vocabulary, T] and tokens [N, T]."""
        self._sum += float(cross_entropy(outputs, targets, reduction="sum"))
        self._count += targets.numel()

    def compute(self) -> float:
        """The perplexity over all batches."""
        return math.exp(min(self._sum / self._count, _MOST_NATS))


_MOST_NATS = 700.0

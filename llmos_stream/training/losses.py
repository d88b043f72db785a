"""The loss where none is given, and whether it can be right for what a model gives."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from llmos_stream.errors import TaskError

Loss = Callable[[Any, Any], Any]

_ADVICE = "hand in `loss`, such as torch.nn.functional.mse_loss or binary_cross_entropy_with_logits"
_OFF_BY = 1e-2


def default_loss(outputs: Any, targets: Any) -> Tensor:
    """The loss that the outputs carry, as those of Hugging Face models do; otherwise the cross entropy of logits.

    Raises:
        TaskError: There is neither a loss nor logits and targets.
    """
    own = _field(outputs, "loss")
    if isinstance(own, Tensor):
        return own
    logits = _logits(outputs)
    if logits is None or not isinstance(targets, Tensor):
        what = f"a {type(outputs).__name__}" if logits is None else "logits"
        given = "none" if targets is None else f"a {type(targets).__name__}"
        raise TaskError(
            f"there is no loss: the model gives {what} without one, and targets are {given}; hand in `loss`"
        )
    return cross_entropy(logits, targets)


def check_classes(loss: Loss, outputs: Any, targets: Any) -> None:
    """Look for numbers that cross entropy makes no sense of: it was not chosen but forgotten, where it is the default.

    Raises:
        TaskError: There is one output an example, or targets that are neither class numbers nor probabilities.
    """
    if not (loss in (default_loss, cross_entropy) or isinstance(loss, nn.CrossEntropyLoss)):
        return
    logits = _logits(outputs)
    if logits is None or not isinstance(targets, Tensor) or isinstance(_field(outputs, "loss"), Tensor):
        return
    if logits.ndim < 2 or logits.shape[1] == 1:
        raise TaskError(f"cross entropy is always 0 for a model with one output an example: {_ADVICE}")
    if targets.is_floating_point() and not (targets.shape == logits.shape and _are_probabilities(targets)):
        raise TaskError(
            f"cross entropy wants class numbers, and targets are other numbers ({targets.dtype}): {_ADVICE}"
        )


def logits_of(outputs: Any, targets: Any) -> Tensor | None:
    """The outputs' logits, where the model classifies and the targets are class numbers."""
    logits = _logits(outputs)
    if logits is None or not isinstance(targets, Tensor):
        return None
    if logits is not outputs and logits.ndim != 2:
        return None  # of a language model, whose targets are shifted
    are_classes = (
        not (targets.is_floating_point() or targets.is_complex() or targets.dtype is torch.bool)
        and logits.ndim == targets.ndim + 1
        and logits.shape[1] >= 2
        and (logits.shape[0], *logits.shape[2:]) == tuple(targets.shape)
    )
    return logits if are_classes else None


def _logits(outputs: Any) -> Tensor | None:
    found = outputs if isinstance(outputs, Tensor) else _field(outputs, "logits")
    return found if isinstance(found, Tensor) else None


def _field(outputs: Any, name: str) -> Any:
    return outputs.get(name) if isinstance(outputs, Mapping) else getattr(outputs, name, None)


def _are_probabilities(targets: Tensor) -> bool:
    off = (targets.detach().float().sum(dim=1) - 1).abs().max()
    return bool(off < _OFF_BY) and bool(targets.min() >= 0)

"""What the model takes, learnt from the task's own test data, and a request's inputs as a tensor of that form."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmos_stream.errors import ConfigError
from llmos_stream.inference.errors import BadInput
from llmos_stream.training import Task


@dataclass(frozen=True, slots=True)
class Form:
    """The shape and dtype of one example."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        if not self.shape:
            return f"a list of {self.kind}"
        return f"a list of examples, each of shape {list(self.shape)} in {self.kind}"

    @property
    def kind(self) -> str:
        """What the numbers are."""
        if self.dtype is torch.bool:
            return "true and false"
        return "finite numbers" if self.dtype.is_floating_point else "whole numbers"

    def example(self) -> list[Any]:
        """One example of zeros, in a list."""
        found: list[Any] = torch.zeros(1, *self.shape, dtype=self.dtype).tolist()
        return found


def form_of(task: Task) -> Form:
    """Works for a while. Raises ConfigError where the task's inputs are not one tensor."""
    batch = next(iter(task.test_batches(1)), None)
    if batch is None:
        raise ConfigError("task.entry: the task has no test batch to learn from what its model takes")
    inputs = batch[0]
    if not isinstance(inputs, Tensor) or inputs.ndim < 1 or inputs.is_complex():
        raise ConfigError("task.entry: only a model whose inputs are one tensor of real numbers can be served")
    return Form(tuple(inputs.shape[1:]), inputs.dtype)


def read_inputs(values: list[Any], form: Form, most: int) -> Tensor:
    """The inputs as a tensor of `form`, at most `most` examples. Raises BadInput, which never holds the values."""
    if not 1 <= len(values) <= most:
        raise BadInput(f"inputs: {len(values)} examples, expected 1 to {most} in one request")
    try:
        # Whole numbers as they come: a dtype given here would cut 1.5 down to 1.
        raw = torch.tensor(values, dtype=torch.float64 if form.dtype.is_floating_point else None)
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadInput(f"inputs: expected {form}; got lists of different lengths, or what is no number") from None
    if tuple(raw.shape[1:]) != form.shape:
        raise BadInput(f"inputs: expected {form}; got shape {list(raw.shape[1:])}")
    if not _fits(raw, form.dtype):
        raise BadInput(f"inputs: expected {form}; got numbers of another kind")
    inputs = raw.to(form.dtype)
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise BadInput(f"inputs: expected {form}; got NaN, an infinity or more than {form.dtype} holds")
    if not inputs.is_floating_point() and not bool((inputs == raw).all()):
        raise BadInput(f"inputs: expected {form}; got more than {form.dtype} holds")
    return inputs


def _fits(raw: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers of the kind of `raw` may be taken for `dtype`."""
    if dtype is torch.bool or raw.dtype is torch.bool:
        return raw.dtype is dtype
    return dtype.is_floating_point or not raw.is_floating_point()

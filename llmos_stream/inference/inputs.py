"""What inputs the model takes, from the task's own example or test data, and a request's inputs as such a tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.training import Task

_SLACK = 10_000  # so that a small body gets the message that says most


class BadInput(LlmosError):
    """A request's inputs are not what the model takes; the message says what was expected, and no value."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The shape and dtype of one example."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def __str__(self) -> str:
        if not self.shape:
            return f"a list of {self.kind}"
        return f"a list of examples, each of shape {list(self.shape)} in {self.kind}"

    @property
    def kind(self) -> str:
        """The kind of numbers, in words."""
        if self.dtype is torch.bool:
            return "true and false"
        return "finite numbers" if self.dtype.is_floating_point else "whole numbers"

    def example(self) -> list[Any]:
        """Return one example of zeros, in a list."""
        found: list[Any] = torch.zeros(1, *self.shape, dtype=self.dtype, device="cpu").tolist()
        return found


def input_spec(task: Task) -> InputSpec:
    """Learn from the task's example, or else from its test data, what its model takes. Call it off the event loop.

    Raises:
        ConfigError: The task's inputs are not one tensor, or it has neither.
    """
    inputs = task.example()
    if isinstance(inputs, Tensor):
        inputs = inputs[None]
    elif inputs is None:
        batch = next(iter(task.test_batches(1) or ()), None)
        if batch is None:
            raise ConfigError(
                "task.entry: the task has no example() and no test batch to learn from what its model takes; "
                "write example(), which gives the inputs of one example, such as torch.zeros(16)"
            )
        inputs = None if isinstance(batch, Mapping) else batch[0]
    if not isinstance(inputs, Tensor) or inputs.ndim < 1 or inputs.is_complex():
        raise ConfigError("task.entry: only a model whose inputs are one tensor of real numbers can be served")
    return InputSpec(tuple(inputs.shape[1:]), inputs.dtype)


def check_counts(body: bytes, spec: InputSpec, max_examples: int) -> None:
    """Look whether a body may hold no more than `max_examples`, before it is parsed.

    An empty list is two characters in a body and takes 64 bytes once it is parsed.

    Raises:
        BadInput: It has more lists or more values.
    """
    lists = 1 + max_examples * sum(math.prod(spec.shape[:depth]) for depth in range(len(spec.shape)))
    values = lists + max_examples * math.prod(spec.shape)
    if body.count(b"[") > lists + _SLACK or body.count(b",") > values + _SLACK:
        raise BadInput(f"inputs: expected {spec}; got more lists or numbers than {max_examples} examples have")


def read_inputs(values: list[Any], spec: InputSpec, max_examples: int) -> Tensor:
    """Turn a request's inputs into a tensor.

    Raises:
        BadInput: They are not what `spec` says, or more than `max_examples`.
    """
    if not 1 <= len(values) <= max_examples:
        raise BadInput(f"inputs: {len(values)} examples, expected 1 to {max_examples} in one request")
    try:
        # No dtype for whole numbers: it would cut 1.5 down to 1.
        raw = torch.tensor(values, dtype=torch.float64 if spec.dtype.is_floating_point else None, device="cpu")
    except (ValueError, TypeError, RuntimeError, OverflowError):
        raise BadInput(f"inputs: expected {spec}; got lists of different lengths, or what is no number") from None
    if tuple(raw.shape[1:]) != spec.shape:
        raise BadInput(f"inputs: expected {spec}; got shape {list(raw.shape[1:])}")
    if not _fits(raw, spec.dtype):
        raise BadInput(f"inputs: expected {spec}; got numbers of another kind")
    inputs = raw.to(spec.dtype)
    if inputs.is_floating_point() and not bool(torch.isfinite(inputs).all()):
        raise BadInput(f"inputs: expected {spec}; got NaN, an infinity or more than {spec.dtype} holds")
    if not inputs.is_floating_point() and not bool((inputs == raw).all()):
        raise BadInput(f"inputs: expected {spec}; got more than {spec.dtype} holds")
    return inputs


def _fits(raw: Tensor, dtype: torch.dtype) -> bool:
    """Whether numbers of the kind of `raw` may be taken for `dtype`."""
    if dtype is torch.bool or raw.dtype is torch.bool:
        return raw.dtype is dtype
    return dtype.is_floating_point or not raw.is_floating_point()

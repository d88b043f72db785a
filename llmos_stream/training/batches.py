"""What a batch may look like, and the loaders that batches come from.

| batch | what happens |
| --- | --- |
| `(inputs, targets)` | inputs are a tensor, a sequence (`model(*inputs)`), a mapping (`model(**inputs)`) or an object |
| a mapping with labels | `model(**batch)`, or `model(input)`; without the labels where `forward` does not take them |
| `Parts` of batches | one step: their gradients add up, each batch by its examples, and one is in memory at a time |

Targets are whatever the loss takes. Numpy arrays become tensors (floating ones of the model's dtype), all tensors go to
the model's device, and a batch without examples is passed over.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from llmos_stream.errors import TaskError
from llmos_stream.training.wrappers import unwrapped


class Parts(tuple[Any, ...]):
    """A batch in parts, for a model that cannot hold the whole of it at once (gradient accumulation)."""


Batch = tuple[Any, Any] | Mapping[str, Any] | Parts
Batches = Iterable[Batch] | Callable[[], Iterable[Batch]]

_LABELS = ("labels", "label", "targets", "target", "y")


class Prepared(NamedTuple):
    """A batch on the model's device. `targets` are None where a mapping has none."""

    inputs: Any
    targets: Any
    num_examples: int


class _Fresh:
    """The batches of a function that is called anew for each epoch."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._make())


def anew(make: Callable[[], Any]) -> Iterable[Batch] | None:
    """What `make` gives, as something that can be gone through once an epoch: a generator is made anew for each.

    Raises:
        TaskError: It gives no batches. None stands for none at all.
    """
    batches = make()
    if batches is None:
        return None
    return _Fresh(make) if _is_used_up_by_a_pass(batches) else reiterable(batches)


def _is_used_up_by_a_pass(batches: object) -> bool:
    """Whether it is a generator, or another iterator of Python's own. Iterators of loaders may begin again."""
    return isinstance(batches, Iterator) and type(batches).__module__ in ("builtins", "itertools")


def reiterable(batches: object) -> Iterable[Batch]:
    """The batches, as something that can be gone through once an epoch.

    Raises:
        TaskError: They cannot: it is a generator, or another iterator of Python's own.
    """
    if _is_used_up_by_a_pass(batches):
        raise TaskError(
            f"the batches are a {type(batches).__name__}, which can be gone through once: "
            "hand in a list, a DataLoader or the function that makes it, which is then called for each epoch"
        )
    if isinstance(batches, Iterable):
        return batches
    if callable(batches):
        return _Fresh(batches)
    raise TaskError(f"the batches are a {type(batches).__name__}, which cannot be gone through: hand in a DataLoader")


def parts_of(model: nn.Module, batch: object, device: torch.device, number: int) -> list[Prepared]:
    """The parts of a batch, each as `model` takes it; one where it is whole, and none where it has no examples.

    Raises:
        TaskError: One has another form than those of this module.
    """
    parts = batch if isinstance(batch, Parts) else (batch,)
    return [found for part in parts if (found := prepare(model, part, device, number)) is not None]


def prepare(model: nn.Module, batch: object, device: torch.device, number: int) -> Prepared | None:
    """The batch as `model` takes it; None where it has no examples.

    Raises:
        TaskError: It has another form than those of this module.
    """
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if isinstance(batch, Mapping):
        inputs, targets = _by_name(model, {name: _moved(value, device, dtype) for name, value in batch.items()}, number)
    elif isinstance(batch, Sequence) and not isinstance(batch, str) and len(batch) == 2:
        inputs, targets = (_moved(part, device, dtype) for part in batch)
        targets = _numbers(targets, device, dtype)
    else:
        raise TaskError(
            f"batch {number} is {_form(batch)}, not a pair (inputs, targets) or a mapping with labels; "
            "several inputs go as ((first, second), targets)"
        )
    size = _num_examples(inputs, targets)
    if size is None:
        raise TaskError(f"batch {number} has no first dimension that counts its examples: targets are {_form(targets)}")
    return Prepared(inputs, targets, size) if size else None


def _by_name(model: nn.Module, fields: dict[str, Any], number: int) -> tuple[Any, Any]:
    """(inputs, targets) of a mapping: `forward` is given what it takes by name, or else the one input that there is."""
    label = next((name for name in _LABELS if name in fields), None)
    targets = None if label is None else fields[label]
    taken = _arguments(model)
    if taken is None:
        return fields, targets
    inputs = {name: value for name, value in fields.items() if name != label or name in taken}
    unknown = [name for name in inputs if name not in taken]
    if len(inputs) == 1 and unknown:
        return inputs[unknown[0]], targets
    if unknown:
        raise TaskError(f"batch {number} holds {', '.join(unknown)}, which the model's forward does not take")
    return inputs, targets


def call(model: nn.Module, inputs: Any) -> Any:
    """The model's outputs."""
    match inputs:
        case Tensor():
            return model(inputs)
        case Mapping():
            return model(**inputs)
        case Sequence() if not hasattr(inputs, "to"):
            return model(*inputs)
        case _:
            return model(inputs)


def _moved(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """`value` with all that it holds as tensors on `device`."""
    match value:
        case np.ndarray() | np.generic():
            return _from_numpy(value, dtype).to(device, non_blocking=True)
        case Tensor():
            return value.to(device, non_blocking=True)
        case _ if hasattr(value, "to"):
            return value.to(device)
        case Mapping():
            return {name: _moved(item, device, dtype) for name, item in value.items()}
        case tuple() | list():
            items = [_moved(item, device, dtype) for item in value]
            return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
        case _:
            return value


def _from_numpy(value: Any, dtype: torch.dtype) -> Tensor:
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return torch.from_numpy(np.array(array, np.float64)).to(dtype)
    if array.dtype.kind not in "biuc":
        raise TaskError(f"a batch holds a numpy array of {array.dtype}, which no tensor can hold")
    # Losses and embeddings want class numbers and indices in 64 bits; bytes are images, as a rule.
    wide = array.dtype.kind in "iu" and array.dtype.itemsize > 1
    return torch.from_numpy(np.array(array, np.int64 if wide else None))


def _numbers(targets: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Targets in a list of numbers, as a tensor."""
    if not isinstance(targets, list | tuple) or not targets:
        return targets
    if not all(isinstance(item, int | float) for item in targets):
        return targets
    whole = all(isinstance(item, int) for item in targets)
    return torch.tensor(targets, dtype=torch.int64 if whole else dtype, device=device)


def _num_examples(inputs: Any, targets: Any) -> int | None:
    if isinstance(targets, Tensor):
        return targets.shape[0] if targets.ndim else None
    if isinstance(targets, Sequence) and all(isinstance(item, Mapping) for item in targets):
        return len(targets)  # as detectors have them: one mapping an example
    first = next((item for item in chain(_tensors(targets), _tensors(inputs)) if item.ndim), None)
    return None if first is None else first.shape[0]


def num_examples_in(batch: Any) -> int:
    """The first dimension of the first tensor that has one; 0 where there is none."""
    return next((item.shape[0] for item in _tensors(batch) if item.ndim), 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    match value:
        case Tensor():
            yield value
        case Mapping():
            yield from chain.from_iterable(map(_tensors, value.values()))
        case tuple() | list():
            yield from chain.from_iterable(map(_tensors, value))


def _arguments(model: nn.Module) -> set[str] | None:
    """The names of the arguments of `forward`; None where it takes any."""
    try:
        parameters = inspect.signature(unwrapped(model).forward).parameters
    except (TypeError, ValueError):
        return None
    if any(item.kind is inspect.Parameter.VAR_KEYWORD for item in parameters.values()):
        return None
    return set(parameters)


def _form(value: object) -> str:
    match value:
        case Tensor():
            return f"a tensor of shape {tuple(value.shape)}"
        case str():
            return "a str"
        case Sequence():
            return f"a {type(value).__name__} of {len(value)}"
        case _:
            return f"a {type(value).__name__}"

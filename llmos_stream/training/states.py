"""State dicts of models under their plain names, wrappers seen through."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from llmos_stream.codec import Layout
from llmos_stream.errors import TaskError
from llmos_stream.training.wrappers import plain_name

_NAMES_IN_ERROR = 5


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """The live tensors of the model's state dict, detached, by plain name. What is no tensor is left out."""
    found = {plain_name(model, name): value for name, value in model.state_dict(keep_vars=True).items()}
    return {name: value.detach() for name, value in found.items() if isinstance(value, Tensor) and not is_lazy(value)}


def state_with(model: nn.Module, layout: Layout, weights: Tensor) -> dict[str, Tensor]:
    """The plain model's state with the weights of a version (flat); what is not shared is as the model has it.

    No tensor is a copy: they are good until the weights or the model change.
    """
    shared = layout.unflatten(weights)
    return state_of(model) | shared | {further: shared[name] for further, name in layout.tied.items()}


def load_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy a state into the model's tensors, in place. See `load_`."""
    load_(state_of(model), state)


def load_(tensors: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy `values` into the live `tensors` in place, each into the dtype and device that is already there.

    The memory stays where it is, so an optimiser goes on working on the same parameters. What cannot be written in
    place stays as it is.

    Raises:
        TaskError: The model has other names or shapes. Nothing was written then.
    """
    other = sorted(name for name in tensors.keys() | values.keys() if _shape(tensors, name) != _shape(values, name))
    if other:
        named = ", ".join(
            f"{name} ({_shape(tensors, name)}, not {_shape(values, name)})" for name in other[:_NAMES_IN_ERROR]
        )
        raise TaskError(f"the model is of another kind: {named}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            if is_writable(tensor):
                tensor.copy_(values[name])


def is_writable(tensor: Tensor) -> bool:
    """Whether values can be copied into the tensor: it is dense, and each of its elements has a place of its own."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return False
    return not any(step == 0 and size > 1 for step, size in zip(tensor.stride(), tensor.shape, strict=True))


def _shape(state: Mapping[str, Tensor], name: str) -> str:
    return str(tuple(state[name].shape)) if name in state else "absent"

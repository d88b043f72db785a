"""Copies of models, of those too that hold what torch refuses to copy."""

import copy
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, cast

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from llmos_stream.errors import TaskError


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy. Of tensors that were computed and kept (as `weight_norm` and pruning do) only the values are copied.

    Raises:
        TaskError: The model holds something else that cannot be copied, such as a lock or an open file.
    """
    return _copied(model, {}, lambda tensor: None if tensor.is_leaf else tensor.detach().clone())


def why_not_copied(model: nn.Module) -> str | None:
    """Why `copy_model` would fail, found without copying a tensor; None where it would not."""
    kept = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    try:
        _copied(model, kept, lambda tensor: tensor)
    except TaskError as error:
        return str(error)
    return None


def _copied(model: nn.Module, memo: dict[int, Any], copy_tensor: Callable[[Tensor], Tensor | None]) -> nn.Module:
    try:
        with _CopyingTensors(copy_tensor):
            return copy.deepcopy(model, memo)
    except Exception as error:
        raise TaskError(
            f"the model cannot be copied ({type(error).__name__}: {error}): "
            "take the newest weights by global_state() or load_into(model) in place of get_global_model()"
        ) from error


class _CopyingTensors(TorchFunctionMode):
    """Copies tensors that are no parameters in a way of its own; as torch does where that gives None."""

    def __init__(self, copy_tensor: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self._copy_tensor = copy_tensor

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not cast("Any", Tensor.__deepcopy__):
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) in memo:
            return memo[id(tensor)]
        copied = self._copy_tensor(tensor)
        if copied is None:
            return func(*args)
        memo[id(tensor)] = copied
        return copied

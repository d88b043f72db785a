"""Weights as a mapping of names to numpy arrays or torch tensors, for models that are not torch's."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.errors import TaskError
from llmos_stream.training.changes import change_of
from llmos_stream.training.sharing import named_by, why_not_shared

Array = np.ndarray[Any, Any] | Tensor
Weights = Mapping[str, Array]

_FLOATING = (np.float16, np.float32, np.float64)


class SharedArrays:
    """What is trained: `received` holds a version in the dtypes and kinds that were given, `trained` comes back.

    Floating arrays are shared that `share` names. The others are not: `received` has them as they were given last.
    """

    def __init__(self, weights: Weights, buffers: Collection[str] = (), share: str = "all") -> None:
        """`buffers` names the arrays that are measurements (such as running means), averaged as values."""
        given = _checked(weights)
        floating = {name: tensor for name, tensor in given.items() if tensor.is_floating_point()}
        shared = {name: floating[name] for name in named_by(share, floating)}
        if not shared:
            raise TaskError(f"weights hold no floating point array to share, but {', '.join(given) or 'nothing'}")
        if unknown := [name for name in buffers if name not in shared]:
            raise TaskError(f"buffers: {', '.join(unknown)} is no floating point array of the weights")
        try:
            self.layout = Layout.of(shared, buffers)
        except ValueError as error:
            raise TaskError(f"weights: {error}") from None
        self.initial = self.layout.flatten(shared)
        self._given = {name: _empty(value) if name in shared else value for name, value in weights.items()}
        self.received: dict[str, Array] = {}
        self._trained: dict[str, Tensor] | None = None

    @property
    def others(self) -> frozenset[str]:
        """The names of what is not shared."""
        return frozenset(self._given.keys() - {spec.name for spec in self.layout.tensors})

    def own(self) -> dict[str, Tensor]:
        """What is not shared, if a floating array is among it: integers alone are no part of a model."""
        own = {name: _whole_tensor(self._given[name]) for name in self.others}
        return own if any(tensor.is_floating_point() for tensor in own.values()) else {}

    def put(self, kept: Mapping[str, Tensor]) -> None:
        """Take what `own` has returned in an earlier process.

        Raises:
            TaskError: That was of other arrays. Nothing was taken then.
        """
        own = self.own()
        for name in sorted(own.keys() | kept.keys()):
            mine, found = own.get(name), kept.get(name)
            if mine is None or found is None or (mine.shape, mine.dtype) != (found.shape, found.dtype):
                raise TaskError(f"the weights are of another kind: {name}")
        self._given |= {name: _like(self._given[name], tensor) for name, tensor in kept.items()}

    def begin(self, weights: Tensor, version: int) -> Tensor:
        """Make `received` of a version; return what became of it in the dtypes that were given."""
        shared = self.layout.unflatten(weights)
        self.received = {name: _like(self._given[name], shared.get(name)) for name in self._given}
        if all(spec.dtype in ("float32", "float64") for spec in self.layout.tensors):
            return weights
        return self.layout.flatten(shared)

    def take(self, weights: Weights) -> None:
        """These are what the version was trained to.

        Raises:
            TaskError: They are others than those that were given at the start.
        """
        given = _checked(weights)
        shared = {spec.name for spec in self.layout.tensors}
        for spec in self.layout.tensors:
            found = given.get(spec.name)
            if found is None:
                raise TaskError(f"weights lack {spec.name!r}")
            if tuple(found.shape) != spec.shape or not found.is_floating_point():
                here = f"{str(found.dtype).removeprefix('torch.')} {list(found.shape)}"
                raise TaskError(f"weights[{spec.name!r}] is {here}, and was {spec.dtype} {list(spec.shape)}")
        if unknown := next((name for name in given if name not in self._given), None):
            raise TaskError(f"weights hold {unknown!r}, which was not there at the start")
        self._trained = {name: tensor for name, tensor in given.items() if name in shared}
        self._given |= {name: weights[name] for name in given if name not in shared}

    def change(self, base: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """What was taken less `base`. See `change_of`."""
        trained = self._trained or {}
        try:
            return change_of(self.layout, base, weights, lambda: self.layout.flatten(trained))
        finally:
            self._trained = None


def _checked(weights: Weights) -> dict[str, Tensor]:
    """The arrays as tensors, which share their memory where that is possible.

    Raises:
        TaskError: One is of a kind that cannot be shared; the error names it.
    """
    if not isinstance(weights, Mapping):
        raise TaskError(f"weights are a {type(weights).__name__}, not a mapping of names to arrays")
    return {name: _tensor(name, value) for name, value in weights.items()}


def _tensor(name: object, value: object) -> Tensor:
    if isinstance(value, Tensor):
        if (value.is_floating_point() or value.is_complex()) and (why := why_not_shared(value)) is not None:
            raise TaskError(f"weights[{name!r}] {why}")
        return value.detach()
    if not isinstance(value, np.ndarray | np.generic) or isinstance(value, np.ma.MaskedArray):
        raise TaskError(f"weights[{name!r}] is a {type(value).__name__}, not a numpy array or a torch tensor")
    array = np.asarray(value)
    if array.dtype.kind not in "iub" and array.dtype.newbyteorder("=") not in _FLOATING:
        raise TaskError(
            f"weights[{name!r}] is of dtype {array.dtype}: "
            "float16, float32 and float64 are shared, integers and booleans are kept, others are refused"
        )
    if array.dtype.kind in "iub":
        return torch.empty(array.shape, dtype=torch.int8, device="meta")  # its values are never looked at
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _whole_tensor(value: Array) -> Tensor:
    """An array with its values."""
    if isinstance(value, Tensor):
        return value.detach()
    array = np.asarray(value)
    return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))


def _empty(given: Array) -> Array:
    """An array of the same kind, dtype and device, without values."""
    if isinstance(given, Tensor):
        return torch.empty(0, dtype=given.dtype, device=given.device)
    return np.empty(0, np.asarray(given).dtype.newbyteorder("="))


def _like(given: Array, shared: Tensor | None) -> Array:
    """A copy of `shared`, of the kind and on the device of `given`; `given` itself where that is not shared."""
    if shared is None:
        return given
    if isinstance(given, Tensor):
        return shared.to(given.device, copy=True)
    return np.array(shared.numpy())

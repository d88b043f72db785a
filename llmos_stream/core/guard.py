"""What must hold of a version before it is committed: the model's own dtypes can hold it, and it is no jump."""

import math
from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from llmos_stream.core.flat import blocks, l2_norm, row_norms
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import TensorKind, TensorSpec


def check_version(parent: Tensor, weights: Tensor, tensors: Sequence[TensorSpec], max_step: float | None) -> None:
    """Raise Rejected(UNSAFE_VERSION) for weights that must not follow those of `parent`. Both are flat, on the CPU.

    No element may become what its tensor's dtype cannot hold, and the parameters may move by `max_step` times their L2
    norm at most, where there is such a limit and they are not all zeros.
    """
    at = 0
    # Those of one dtype that lie together are looked at in one pass: a small model is not held up by its many tensors.
    for dtype, specs in groupby(tensors, lambda spec: spec.dtype):
        alike = list(specs)
        here = slice(at, at := at + sum(spec.numel for spec in alike))
        if not _fits(weights[here], dtype):
            _check_each(parent[here], weights[here], alike)
    if max_step is None:
        return
    end = sum(spec.numel for spec in tensors if spec.kind is TensorKind.PARAMETER)
    size, pairs = l2_norm(parent[:end]), blocks(parent[:end], weights[:end])
    step = math.hypot(*(norm for before, after in pairs for norm in row_norms(after - before)))
    if size > 0 and not step <= max_step * size:
        raise _unsafe(f"parameters would move by {step / size:.3g} of their norm; aggregation.max_step is {max_step:g}")


def _check_each(parent: Tensor, weights: Tensor, tensors: Sequence[TensorSpec]) -> None:
    at = 0
    for spec in tensors:
        here = slice(at, at := at + spec.numel)
        if not _fits(weights[here], spec.dtype):
            # What was infinite before (a mask) may stay so.
            became = _as_stored(weights[here], spec.dtype).isfinite().logical_not()
            became &= weights[here].view(torch.int32) != parent[here].view(torch.int32)
            for place in became.nonzero().flatten()[:1].tolist():
                value, was = float(weights[here][place]), float(parent[here][place])
                raise _unsafe(f"{spec.name} would go from {was:g} to {value:g}, which {spec.dtype} cannot hold")


def _fits(values: Tensor, dtype: str) -> bool:
    # The extremes alone, which take no memory: they are NaN where any element is.
    return values.numel() == 0 or bool(_as_stored(torch.stack(values.aminmax()), dtype).isfinite().all())


def _as_stored(values: Tensor, dtype: str) -> Tensor:
    known: torch.dtype = getattr(torch, dtype)
    return values.to(known)


def _unsafe(detail: str) -> Rejected:
    return Rejected(Reason.UNSAFE_VERSION, detail)

"""The flat vector: one contiguous 1-D float32 CPU tensor. Its form, its blocks and its L2 norm.

Everything here gives the same bits for any number of threads. Element by element that holds because
each operation is rounded on its own, as IEEE 754 says. A fused multiply-add (`add_` with `alpha`,
`addcmul`, `lerp`) is avoided: it rounds once in the vector loop and may round twice in the scalar
tail, and where the tails lie depends on how the work was split over threads.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 1 << 19
"""Elements handled at a time: 2 MiB each, so that a chain of operations on a block stays in cache."""
_ROW = 4096
_SMALL = 1e-10


def require_flat(tensor: Tensor, numel: int | None = None) -> None:
    """Raise ValueError unless `tensor` is a flat vector (of `numel` elements, where given)."""
    if tensor.ndim != 1 or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"a 1-D float32 CPU tensor is needed, not {tensor.ndim}-D {tensor.dtype} on {tensor.device}")
    if not tensor.is_contiguous() or tensor.requires_grad:
        raise ValueError("a contiguous tensor without gradient is needed")
    if numel is not None and tensor.numel() != numel:
        raise ValueError(f"{numel} elements are needed, not {tensor.numel()}")


def blocks(*flats: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of `flats`, block by block, in step."""
    return zip(*(torch.split(flat, BLOCK) for flat in flats), strict=True)


def scratch(flat: Tensor) -> Tensor:
    """Room for one block of `flat`; its values are arbitrary."""
    return flat.new_empty(min(BLOCK, flat.numel()))


def add_scaled(total: Tensor, flat: Tensor, factor: float) -> None:
    """`total += factor * flat`, in place, in one pass over memory and without a full-size temporary."""
    room = scratch(flat)
    for part, addend in blocks(total, flat):
        part.add_(torch.mul(addend, factor, out=room[: part.numel()]))


def l2_norm(flat: Tensor) -> float:
    """L2 norm of a flat vector, with a relative error of about 1e-6. NaN or infinite only if an element is.

    One float32 pass over rows of fixed width, which are then combined in float64; a second one, in
    float64, where squares overflowed, underflowed or were never finite.
    """
    norm = math.hypot(*_row_norms(flat))
    if _SMALL < norm < math.inf:
        return norm
    return math.hypot(*(part for (block,) in blocks(flat) for part in _row_norms(block.double())))


def _row_norms(flat: Tensor) -> list[float]:
    """Norms of rows of `_ROW` elements and of what is left over.

    A reduction of the whole vector may be split at places that depend on the number of threads; a
    row is reduced by one thread, always in the same order.
    """
    whole = flat.numel() // _ROW * _ROW
    norms: list[float] = torch.linalg.vector_norm(flat[:whole].view(-1, _ROW), dim=1).tolist()
    if whole < flat.numel():
        norms.append(torch.linalg.vector_norm(flat[whole:]).item())
    return norms

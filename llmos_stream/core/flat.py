"""The flat vector: one contiguous 1-D float32 CPU tensor. Its form, its blocks and its L2 norm.

What is folded may lie on a GPU as well (see `state.start`), where norms are not taken: a GPU adds up in another order.

Everything here gives the same bits for any number of threads. Element by element that holds because
each operation is rounded on its own, as IEEE 754 says. A fused multiply-add (`add_` with `alpha`,
`addcmul`, `lerp`) is avoided: it rounds once in the vector loop and may round twice in the scalar
tail, and where the tails lie depends on how the work was split over threads. So it is from one device
to another too: add, subtract, multiply, divide and square root are rounded alike by CPUs and GPUs. (A
division by a Python number is none on a GPU, where torch multiplies with the reciprocal: see `divisor`.)
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

BLOCK = 1 << 19
"""Elements handled at a time: 2 MiB each, so that a chain of operations on a block stays in cache."""
ROW = 4096
"""Elements that are summed up in float32."""
_SMALL = 1e-10


def require_flat(tensor: Tensor, numel: int | None = None) -> None:
    """Raise ValueError unless `tensor` is a flat vector (of `numel` elements, where given)."""
    if tensor.ndim != 1 or tensor.dtype != torch.float32 or tensor.device.type != "cpu":
        raise ValueError(f"a 1-D float32 CPU tensor is needed, not {tensor.ndim}-D {tensor.dtype} on {tensor.device}")
    if not tensor.is_contiguous() or tensor.requires_grad:
        raise ValueError("a contiguous tensor without gradient is needed")
    if numel is not None and tensor.numel() != numel:
        raise ValueError(f"{numel} elements are needed, not {tensor.numel()}")


def block_views(flat: Tensor) -> Sequence[Tensor]:
    """Views of `flat`, block by block. A small model's is the vector itself, which saves an operation an update."""
    return torch.split(flat, BLOCK) if flat.numel() > BLOCK else (flat,)


def blocks(*flats: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of `flats`, block by block, in step."""
    return zip(*map(block_views, flats), strict=True)


def scratch(flat: Tensor) -> Tensor:
    """Room for one block of `flat`; its values are arbitrary."""
    return flat.new_empty(min(BLOCK, flat.numel()))


def divisor(number: float, flat: Tensor) -> Tensor:
    """`number`, rounded to float32, to divide blocks of `flat` by: a tensor beside it, so that a GPU divides too."""
    return torch.tensor(number, dtype=torch.float32, device=flat.device)


def l2_norm(flat: Tensor) -> float:
    """L2 norm of a flat vector, with a relative error of about 1e-6. NaN or infinite only if an element is.

    One float32 pass over rows of fixed width, which are then combined in float64; a second one, in
    float64, where squares overflowed, underflowed or were never finite.
    """
    return norm_of(row_norms(flat), lambda: block_views(flat))


def norm_of(rows: Iterable[float], again: Callable[[], Iterable[Tensor]]) -> float:
    """The L2 norm that `l2_norm` gives, from the `row_norms` of all slices of a flat vector in order.

    `again` gives the slices once more, which few vectors need. Every slice but the last is a multiple of ROW long.
    """
    norm = math.hypot(*rows)
    if _SMALL < norm < math.inf:
        return norm
    return math.hypot(*(row for part in again() for row in row_norms(part.double())))


def row_norms(flat: Tensor) -> list[float]:
    """Norms of rows of `ROW` elements and of what is left over.

    A reduction of the whole vector may be split at places that depend on the number of threads; a
    row is reduced by one thread, always in the same order.
    """
    whole = flat.numel() // ROW * ROW
    norms: list[float] = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1).tolist()
    if whole < flat.numel():
        norms.append(torch.linalg.vector_norm(flat[whole:]).item())
    return norms

"""Memory that the slices of one call share.

A slice's temporaries are megabytes. Allocated afresh they go back to the system between slices, and the page faults
cost several times what the arithmetic does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor


class Scratch:
    """Buffers by name. Belongs to one call: what it hands out is overwritten by the next request for the name."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """A 1-D tensor of `count` elements of `dtype`, contents undefined."""
        size = count * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8)
        return buffer[:size].view(dtype)


_SPARE: list[Scratch] = []


@contextmanager
def borrowed() -> Iterator[Scratch]:
    """A scratch that nobody else uses meanwhile. The process keeps as many as were ever in use at once."""
    scratch: Scratch | None = None
    with suppress(IndexError):  # other threads may be quicker
        scratch = _SPARE.pop()
    scratch = scratch or Scratch()
    try:
        yield scratch
    finally:
        _SPARE.append(scratch)


def times(values: Tensor, factor: float | None, scratch: Scratch) -> Tensor:
    """`values` (1-D float32) if `factor` is None, else their products with it in the scratch's "values", where they may
    lie already."""
    if factor is None:
        return values
    return torch.mul(values, factor, out=scratch.take("values", values.numel(), torch.float32))

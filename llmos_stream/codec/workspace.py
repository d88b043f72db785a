"""Memory that the slices of one call share.

A slice's temporaries take megabytes. Memory allocated for each slice goes back to the system after it, and the page
faults of the next allocation cost several times what the arithmetic does.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch
from torch import Tensor


class Workspace:
    """Named buffers of one call. The next request for a name overwrites what the last one gave out."""

    def __init__(self) -> None:
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, count: int, dtype: torch.dtype) -> Tensor:
        """A 1-D tensor of `count` elements of `dtype`, contents undefined."""
        size = count * dtype.itemsize
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = torch.empty(size, dtype=torch.uint8, device="cpu")
        return buffer[:size].view(dtype)


_SPARE: list[Workspace] = []


@contextmanager
def borrowed() -> Iterator[Workspace]:
    """A workspace that nobody else uses meanwhile. The process keeps as many as were ever in use at once."""
    workspace: Workspace | None = None
    with suppress(IndexError):  # other threads may be quicker
        workspace = _SPARE.pop()
    workspace = workspace or Workspace()
    try:
        yield workspace
    finally:
        _SPARE.append(workspace)

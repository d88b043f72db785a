"""The top-k codec: the largest elements of a slice by magnitude, and their places.

Of n elements the k = ceil(fraction x n) largest are kept (of equal magnitudes the earlier ones); the others decode to
zero (Aji and Heafield 2017). Body:

* the k values in the order of their places. bits = 8: ceil(k / 4096) low bytes, as many high bytes of the scales
  (bfloat16), then k steps (int8), as in `blocks` with B = 4096. bits = 32: float32, its bytes shuffled;
* a gap for each, as in `sparse`.

A block of 4096 values, more than int8 takes, is right here: what the dropped elements lose is far above the step,
so the coarser scale costs next to nothing and leaves zstd more to save.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from llmos_stream.codec import byte_shuffle
from llmos_stream.codec.blocks import dequantize_blocks, quantize_blocks, rounding_noise, subtract_decoded
from llmos_stream.codec.sparse import ESCAPE, Places, Sparse, magnitudes_of, read_gaps, write_gaps
from llmos_stream.codec.workspace import Workspace
from llmos_stream.errors import Reason, Rejected

_BLOCK = 4096
_LEVELS = 127
_COARSE = 1 << 15
_SAMPLE = 1 << 14


@dataclass(frozen=True, slots=True)
class TopK(Sparse):
    """Keeps `fraction` (0 < fraction <= 1) of the elements, their values with 8 or 32 `bits`."""

    fraction: float
    bits: int
    stochastic: bool

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        noise = rounding_noise(self.stochastic, generator)
        places = _largest(magnitudes_of(values, workspace), self.kept(values.numel()), workspace)
        kept = torch.from_numpy(values.numpy().take(places))
        gaps = torch.from_numpy(write_gaps(np.diff(places, prepend=-1) - 1))
        if residual is not None and residual.data_ptr() != values.data_ptr():
            residual.copy_(values)
        if self.bits == 32:
            if residual is not None:
                residual.numpy()[places] = 0.0
            return [*byte_shuffle.shuffle(kept.view(torch.int32), workspace), gaps]
        scales, steps = quantize_blocks(kept, _LEVELS, _BLOCK, noise, workspace)
        if residual is not None:
            subtract_decoded(kept, scales, steps, _BLOCK, kept, workspace)
            residual.numpy()[places] = kept.numpy()
        return [*byte_shuffle.shuffle(scales, workspace), steps.view(torch.uint8), gaps]

    def bounds(self, count: int) -> tuple[int, int]:
        kept = self.kept(count)
        least = self._values_size(kept) + kept
        return least, least + (count - kept) // ESCAPE

    def kept(self, count: int) -> int:
        return math.ceil(self.fraction * count)

    def read(self, body: Tensor, count: int, kept: Tensor, workspace: Workspace) -> Places:
        size = self._values_size(kept.numel())
        places = read_gaps(body[size:].numpy(), kept.numel())
        if places[-1] >= count:
            raise Rejected(Reason.CORRUPT_PAYLOAD, f"place {places[-1]} lies beyond the {count} elements of the slice")
        if self.bits == 32:
            byte_shuffle.unshuffle(body[:size], kept.view(torch.int32), workspace)
        else:
            scales, steps = body[: size - kept.numel()], body[size - kept.numel() : size].view(torch.int8)
            dequantize_blocks(scales, steps, _BLOCK, kept, workspace)
        return places

    def _values_size(self, kept: int) -> int:
        return 4 * kept if self.bits == 32 else 2 * -(-kept // _BLOCK) + kept


def _largest(bits: Tensor, count: int, workspace: Workspace) -> Places:
    """Places of the `count` largest magnitudes (int32)."""
    magnitudes = bits.numpy()
    places = _sampled(magnitudes, count)
    if places is None:
        places = _counted(bits, count, workspace)
    found = magnitudes[places]
    excess = places.size - count
    threshold = np.partition(found, excess)[excess]
    keep = found >= threshold
    places, found = places[keep], found[keep]
    if excess := places.size - count:
        places = np.delete(places, np.flatnonzero(found == threshold)[-excess:])
    return places


def _sampled(magnitudes: NDArray[np.int32], count: int) -> Places | None:
    """Places of somewhat more than the `count` largest, as a sample tells; None where that misled."""
    every = magnitudes.size // _SAMPLE
    if every < 2 or 4 * count > magnitudes.size:
        return None
    sample = magnitudes[::every]
    above = count * sample.size / magnitudes.size
    above += 4 * math.sqrt(above) + 4  # a sample that misleads costs a second try
    rank = max(0, sample.size - 1 - int(above))
    places = np.flatnonzero(magnitudes >= np.partition(sample, rank)[rank])
    return places if places.size >= count else None


def _counted(bits: Tensor, count: int, workspace: Workspace) -> Places:
    """The same by counting the upper halves, which takes a fraction of the time that a partition of all would."""
    coarse = torch.bitwise_right_shift(bits, 16, out=workspace.take("coarse", bits.numel(), torch.int32))
    at_least = torch.bincount(coarse, minlength=_COARSE).numpy()[::-1].cumsum()[::-1]
    level = int(np.flatnonzero(at_least >= count)[-1])
    return np.flatnonzero(coarse.numpy() >= level)

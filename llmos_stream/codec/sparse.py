"""The top-k codec: the largest elements of a slice by magnitude, and their indices.

Of n elements the k = ceil(fraction x n) largest are kept (of equal magnitudes the earlier ones); the others decode to
zero (Aji and Heafield 2017). Body:

* the k values in the order of their indices. bits = 8: ceil(k / 4096) low bytes, as many high bytes of the scales
  (bfloat16), then k steps (int8), as in `blocks` with B = 4096. bits = 32: float32, its bytes shuffled;
* the gaps: for each kept element the number of elements left out since the one before it (or since the start), as
  zero or more bytes 255, each worth 255, and one byte below 255.

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
from llmos_stream.codec.workspace import Workspace
from llmos_stream.errors import Reason, Rejected

_BLOCK = 4096
_LEVELS = 127
_ESCAPE = 255
_COARSE = 1 << 15
_INFINITY = 0x7F800000
_SAMPLE = 1 << 14


@dataclass(frozen=True, slots=True)
class TopK:
    """Keeps `fraction` (0 < fraction <= 1) of the elements, their values with 8 or 32 `bits`."""

    fraction: float
    bits: int
    stochastic: bool

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        noise = rounding_noise(self.stochastic, generator)
        indices = _largest(values, self._kept(values.numel()), workspace)
        kept = torch.from_numpy(values.numpy().take(indices))
        gaps = torch.from_numpy(_gaps(indices))
        if residual is not None and residual.data_ptr() != values.data_ptr():
            residual.copy_(values)
        if self.bits == 32:
            if residual is not None:
                residual.numpy()[indices] = 0.0
            return [*byte_shuffle.shuffle(kept.view(torch.int32), workspace), gaps]
        scales, steps = quantize_blocks(kept, _LEVELS, _BLOCK, noise, workspace)
        if residual is not None:
            subtract_decoded(kept, scales, steps, _BLOCK, kept, workspace)
            residual.numpy()[indices] = kept.numpy()
        return [*byte_shuffle.shuffle(scales, workspace), steps.view(torch.uint8), gaps]

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        count = self._kept(out.numel())
        kept = workspace.take("kept", count, torch.float32)
        indices = self._read(body, out.numel(), kept, workspace)
        out.zero_()
        out.numpy()[indices] = kept.numpy()

    def bounds(self, count: int) -> tuple[int, int]:
        kept = self._kept(count)
        least = self._values_size(kept) + kept
        return least, least + (count - kept) // _ESCAPE

    def quantized_size(self, count: int) -> int:
        """The quantized form is the kept values (float32) and their indices (int32), or all values if that is less."""
        return 4 * min(2 * self._kept(count), count)

    def unpacks_in_place(self) -> bool:
        return False

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        if self._is_dense(count):
            self.decode(body, quantized.view(torch.float32), workspace)
            return math.inf
        kept, indices = quantized.view(2, -1)
        kept = kept.view(torch.float32)
        indices.view(torch.int32).numpy()[:] = self._read(body, count, kept, workspace)
        return float(kept.abs().max())

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        if self._is_dense(count):
            return quantized.view(torch.float32)[begin:end]
        kept, indices = quantized.view(torch.int32).view(2, -1).numpy()
        first, last = np.searchsorted(indices, (begin, end))
        values = workspace.take("values", end - begin, torch.float32).zero_()
        values.numpy()[indices[first:last] - begin] = kept.view(np.float32)[first:last]
        return values

    def _read(self, body: Tensor, total: int, kept: Tensor, workspace: Workspace) -> NDArray[np.int64]:
        """Write the kept values into `kept` and return their indices."""
        count = kept.numel()
        size = self._values_size(count)
        indices = _indices(body[size:].numpy(), count, total)
        if self.bits == 32:
            byte_shuffle.unshuffle(body[:size], kept.view(torch.int32), workspace)
        else:
            dequantize_blocks(body[: size - count], body[size - count : size].view(torch.int8), _BLOCK, kept, workspace)
        return indices

    def _is_dense(self, count: int) -> bool:
        return 2 * self._kept(count) >= count

    def _kept(self, count: int) -> int:
        return math.ceil(self.fraction * count)

    def _values_size(self, kept: int) -> int:
        return 4 * kept if self.bits == 32 else 2 * -(-kept // _BLOCK) + kept


def _largest(values: Tensor, count: int, workspace: Workspace) -> NDArray[np.int64]:
    """Places, ascending, of the `count` largest magnitudes. Raises ValueError for NaN and infinity."""
    # As integers the bits of magnitudes are ordered as the magnitudes are.
    bits = workspace.take("magnitudes", values.numel(), torch.int32)
    torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=bits)
    if int(bits.max()) >= _INFINITY:
        raise ValueError("NaN and infinity have no place among the largest elements")
    magnitudes = bits.numpy()
    indices = _sampled(magnitudes, count)
    if indices is None:
        indices = _counted(bits, count, workspace)
    found = magnitudes[indices]
    excess = indices.size - count
    threshold = np.partition(found, excess)[excess]
    keep = found >= threshold
    indices, found = indices[keep], found[keep]
    if excess := indices.size - count:
        indices = np.delete(indices, np.flatnonzero(found == threshold)[-excess:])
    return indices


def _sampled(magnitudes: NDArray[np.int32], count: int) -> NDArray[np.int64] | None:
    """Places, ascending, of somewhat more than the `count` largest, as a sample tells; None where that misled."""
    every = magnitudes.size // _SAMPLE
    if every < 2 or 4 * count > magnitudes.size:
        return None
    sample = magnitudes[::every]
    above = count * sample.size / magnitudes.size
    above += 4 * math.sqrt(above) + 4  # a sample that misleads costs a second try
    rank = max(0, sample.size - 1 - int(above))
    indices = np.flatnonzero(magnitudes >= np.partition(sample, rank)[rank])
    return indices if indices.size >= count else None


def _counted(bits: Tensor, count: int, workspace: Workspace) -> NDArray[np.int64]:
    """The same by counting the upper halves, which takes a fraction of the time that a partition of all would."""
    coarse = torch.bitwise_right_shift(bits, 16, out=workspace.take("coarse", bits.numel(), torch.int32))
    at_least = torch.bincount(coarse, minlength=_COARSE).numpy()[::-1].cumsum()[::-1]
    level = int(np.flatnonzero(at_least >= count)[-1])
    return np.flatnonzero(coarse.numpy() >= level)


def _gaps(indices: NDArray[np.int64]) -> NDArray[np.uint8]:
    escapes, rest = np.divmod(np.diff(indices, prepend=-1) - 1, _ESCAPE)
    ends = np.cumsum(escapes + 1)
    gaps = np.full(ends[-1], _ESCAPE, np.uint8)
    gaps[ends - 1] = rest
    return gaps


def _indices(gaps: NDArray[np.uint8], count: int, total: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(gaps != _ESCAPE)
    if ends.size != count or gaps[-1] == _ESCAPE:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"the gaps name {ends.size} indices, not {count}")
    indices: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count)
    if indices[-1] >= total:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"index {indices[-1]} lies beyond the {total} elements of the slice")
    return indices

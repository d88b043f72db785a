"""The top-k codec: the largest elements of a slice by magnitude, and where they are.

Of n elements the k = ceil(fraction x n) largest are kept (of equal magnitudes the earlier ones); the others decode to
zero (Aji and Heafield 2017). Body:

* the k values in the order of their places. bits = 8: ceil(k / 4096) low bytes, as many high bytes of the scales
  (bfloat16), then k steps (int8), as in `blocks` with B = 4096. bits = 32: the four byte planes of float32;
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

from llmos_stream.codec import planes
from llmos_stream.codec.blocks import dequantise, noise_of, quantise, take_away
from llmos_stream.codec.scratch import Scratch, times
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
        self, values: Tensor, generator: Generator | None, scratch: Scratch, lost: Tensor | None = None
    ) -> list[Tensor]:
        noise = noise_of(self.stochastic, generator)
        places = _largest(values, self._kept(values.numel()), scratch)
        kept = torch.from_numpy(values.numpy().take(places))
        gaps = torch.from_numpy(_gaps(places))
        if lost is not None and lost.data_ptr() != values.data_ptr():
            lost.copy_(values)
        if self.bits == 32:
            if lost is not None:
                lost.numpy()[places] = 0.0
            return [*planes.split(kept.view(torch.int32), scratch), gaps]
        scales, steps = quantise(kept, _LEVELS, _BLOCK, noise, scratch)
        if lost is not None:
            take_away(kept, scales, steps, _BLOCK, kept, scratch)
            lost.numpy()[places] = kept.numpy()
        return [*planes.split(scales, scratch), steps.view(torch.uint8), gaps]

    def decode(self, body: Tensor, out: Tensor, scratch: Scratch) -> None:
        count = self._kept(out.numel())
        kept = scratch.take("kept", count, torch.float32)
        places = self._read(body, out.numel(), kept, scratch)
        out.zero_()
        out.numpy()[places] = kept.numpy()

    def bounds(self, count: int) -> tuple[int, int]:
        kept = self._kept(count)
        least = self._values_size(kept) + kept
        return least, least + (count - kept) // _ESCAPE

    def compact_size(self, count: int) -> int:
        """The compact form is the kept values (float32), then their places (int32); or all values if that is less."""
        return 4 * min(2 * self._kept(count), count)

    def in_place(self) -> bool:
        return False

    def condense(self, body: Tensor, count: int, compact: Tensor, scratch: Scratch) -> float:
        if self._is_dense(count):
            self.decode(body, compact.view(torch.float32), scratch)
            return math.inf
        kept, places = compact.view(2, -1)
        kept = kept.view(torch.float32)
        places.view(torch.int32).numpy()[:] = self._read(body, count, kept, scratch)
        return float(kept.abs().max())

    def expand(
        self, compact: Tensor, count: int, begin: int, end: int, scratch: Scratch, factor: float | None = None
    ) -> Tensor:
        if self._is_dense(count):
            return times(compact.view(torch.float32)[begin:end], factor, scratch)
        kept, places = compact.view(torch.int32).view(2, -1).numpy()
        first, last = np.searchsorted(places, (begin, end))
        values = scratch.take("values", end - begin, torch.float32).zero_()
        values.numpy()[places[first:last] - begin] = kept.view(np.float32)[first:last]
        return times(values, factor, scratch)

    def _read(self, body: Tensor, total: int, kept: Tensor, scratch: Scratch) -> NDArray[np.int64]:
        """Write the kept values into `kept` and return their places."""
        count = kept.numel()
        size = self._values_size(count)
        places = _places(body[size:].numpy(), count, total)
        if self.bits == 32:
            planes.join(body[:size], kept.view(torch.int32), scratch)
        else:
            dequantise(body[: size - count], body[size - count : size].view(torch.int8), _BLOCK, kept, scratch)
        return places

    def _is_dense(self, count: int) -> bool:
        return 2 * self._kept(count) >= count

    def _kept(self, count: int) -> int:
        return math.ceil(self.fraction * count)

    def _values_size(self, kept: int) -> int:
        return 4 * kept if self.bits == 32 else 2 * -(-kept // _BLOCK) + kept


def _largest(values: Tensor, count: int, scratch: Scratch) -> NDArray[np.int64]:
    """Places, ascending, of the `count` largest magnitudes. Raises ValueError for NaN and infinity."""
    # As integers the bits of magnitudes are ordered as the magnitudes are.
    bits = scratch.take("magnitudes", values.numel(), torch.int32)
    torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=bits)
    if int(bits.max()) >= _INFINITY:
        raise ValueError("NaN and infinity have no place among the largest elements")
    magnitudes = bits.numpy()
    places = _sampled(magnitudes, count)
    if places is None:
        places = _counted(bits, count, scratch)
    found = magnitudes[places]
    excess = places.size - count
    threshold = np.partition(found, excess)[excess]
    keep = found >= threshold
    places, found = places[keep], found[keep]
    if excess := places.size - count:
        places = np.delete(places, np.flatnonzero(found == threshold)[-excess:])
    return places


def _sampled(magnitudes: NDArray[np.int32], count: int) -> NDArray[np.int64] | None:
    """Places, ascending, of somewhat more than the `count` largest, as a sample tells; None where that misled."""
    every = magnitudes.size // _SAMPLE
    if every < 2 or 4 * count > magnitudes.size:
        return None
    sample = magnitudes[::every]
    above = count * sample.size / magnitudes.size
    above += 4 * math.sqrt(above) + 4  # a sample that misleads costs a second try
    rank = max(0, sample.size - 1 - int(above))
    places = np.flatnonzero(magnitudes >= np.partition(sample, rank)[rank])
    return places if places.size >= count else None


def _counted(bits: Tensor, count: int, scratch: Scratch) -> NDArray[np.int64]:
    """The same by counting the upper halves, which takes a fraction of the time that a partition of all would."""
    coarse = torch.bitwise_right_shift(bits, 16, out=scratch.take("coarse", bits.numel(), torch.int32))
    at_least = torch.bincount(coarse, minlength=_COARSE).numpy()[::-1].cumsum()[::-1]
    level = int(np.flatnonzero(at_least >= count)[-1])
    return np.flatnonzero(coarse.numpy() >= level)


def _gaps(places: NDArray[np.int64]) -> NDArray[np.uint8]:
    escapes, rest = np.divmod(np.diff(places, prepend=-1) - 1, _ESCAPE)
    ends = np.cumsum(escapes + 1)
    gaps = np.full(ends[-1], _ESCAPE, np.uint8)
    gaps[ends - 1] = rest
    return gaps


def _places(gaps: NDArray[np.uint8], count: int, total: int) -> NDArray[np.int64]:
    ends = np.flatnonzero(gaps != _ESCAPE)
    if ends.size != count or gaps[-1] == _ESCAPE:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"the gaps name {ends.size} places, not {count}")
    places: NDArray[np.int64] = np.cumsum(gaps, dtype=np.int64)[ends] + np.arange(count)
    if places[-1] >= total:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"place {places[-1]} lies beyond the {total} elements of the slice")
    return places

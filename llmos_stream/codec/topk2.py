"""Chunked top-k with 2-bit values: the largest elements of every chunk, each a sign and one of two magnitudes.

A slice is cut into m chunks of `chunk` elements; the last may be shorter. Of each the `keep` largest by magnitude are
kept (of equal magnitudes the earlier ones; of r elements in the last chunk ceil(keep x r / chunk)), K in all, and the
others decode to zero. Chunks let the choice follow the scale of each layer (SparseLoCo, Sarfi et al. 2025). Body:

* m low magnitudes, then m high ones (bfloat16): their low bytes, then their high bytes;
* ceil(K / 8) bytes, bit j of byte i is 1 where value 8 i + j is negative;
* as many bytes, the bit is 1 where the value has its chunk's high magnitude;
* a gap for each, as in `sparse`, counted anew from the start of every chunk.

The two magnitudes are the means of the two groups into which the kept magnitudes of a chunk fall with the least squared
error (2-means in one dimension, which is exact: in order, each group is a run). A magnitude below 2^-126 is written as
0. Where zeros are among the kept elements, the low magnitude is 0, so that zeros stay zeros.

At 64 of 4,096 a value costs 2 bits less what zstd finds in unequal groups, its place 7.4 to 7.5 (7.36 at least, for
random places), the magnitudes 0.2 to 0.3: below 0.15 bit an element. Of the squared length of a normal vector the
dropped elements are 88 %; values lose 0.05 % with two magnitudes, 0.14 % with one, 1.6 % with steps of a third of the
largest.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Generator, Tensor

from llmos_stream.codec import byte_shuffle
from llmos_stream.codec.sparse import ESCAPE, Places, Sparse, magnitudes_of, read_gaps, write_gaps
from llmos_stream.codec.workspace import Workspace
from llmos_stream.errors import Reason, Rejected

_LEAST = 0x0080
_INFINITY = 0x7F80

_Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class TopK2(Sparse):
    """Keeps `keep` of each `chunk` elements; `chunk` is a power of two that divides the length of a slice."""

    chunk: int
    keep: int

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        bits = magnitudes_of(values, workspace).numpy()
        whole = values.numel() // self.chunk * self.chunk
        places = self._largest(bits[:whole].reshape(-1, self.chunk), self.keep, workspace)
        if whole < bits.size:
            last = self._largest(bits[None, whole:], self.kept(bits.size - whole), workspace)
            places = np.concatenate((places, last + whole))
        kept = values.numpy()[places]
        scales = self._scales(np.abs(kept))
        is_high = np.abs(kept) > scales.mean(0, dtype=np.float64)[self._chunk_of(kept.size)]
        is_negative = np.signbit(kept)
        if residual is not None:
            if residual.data_ptr() != values.data_ptr():
                residual.copy_(values)
            residual.numpy()[places] = kept - self._values(scales, is_high, is_negative)
        halves = torch.from_numpy((scales.view(np.int32) >> 16).astype(np.int16).reshape(-1))
        return [
            *byte_shuffle.shuffle(halves, workspace),
            torch.from_numpy(np.packbits(is_negative, bitorder="little")),
            torch.from_numpy(np.packbits(is_high, bitorder="little")),
            torch.from_numpy(write_gaps(self._gaps(places))),
        ]

    def bounds(self, count: int) -> tuple[int, int]:
        kept = self.kept(count)
        whole, rest = divmod(count, self.chunk)
        escapes = whole * ((self.chunk - self.keep) // ESCAPE)
        if rest:
            escapes += (rest - self.kept(rest)) // ESCAPE
        least = sum(self._sizes(count)) + kept
        return least, least + escapes

    def kept(self, count: int) -> int:
        whole, rest = divmod(count, self.chunk)
        return whole * self.keep + -(-self.keep * rest // self.chunk)

    def read(self, body: Tensor, count: int, kept: Tensor, workspace: Workspace) -> Places:
        scales_size, bits_size, _ = sizes = self._sizes(count)
        halves = workspace.take("scales", scales_size // 2, torch.int16)
        byte_shuffle.unshuffle(body[:scales_size], halves, workspace)
        if int(halves.min()) < 0 or int(halves.max()) >= _INFINITY:
            raise Rejected(Reason.CORRUPT_PAYLOAD, "a magnitude is negative or not finite")
        scales = halves.view(torch.bfloat16).float().numpy().reshape(2, -1)
        bits = body[scales_size : sum(sizes)].numpy().reshape(2, bits_size)
        is_negative, is_high = np.unpackbits(bits, axis=1, count=kept.numel(), bitorder="little").view(np.bool_)
        kept.numpy()[:] = self._values(scales, is_high, is_negative)
        return self._places(read_gaps(body[sum(sizes) :].numpy(), kept.numel()), count)

    def _sizes(self, count: int) -> tuple[int, int, int]:
        """Bytes of the magnitudes, of the signs, and of the bits that choose a magnitude."""
        bits = -(-self.kept(count) // 8)
        return 4 * -(-count // self.chunk), bits, bits

    def _chunk_of(self, kept: int) -> Places:
        """The chunk of each kept element. The last keeps no more than the others, so this needs no table."""
        return np.arange(kept) // self.keep

    def _largest(self, bits: NDArray[np.int32], count: int, workspace: Workspace) -> Places:
        """Places of the `count` largest magnitudes of every row."""
        room = workspace.take("partitioned", bits.size, torch.int32).numpy().reshape(bits.shape)
        np.copyto(room, bits)
        rank = bits.shape[1] - count
        room.partition(rank, axis=1)
        threshold = room[:, rank : rank + 1]
        is_kept = bits >= threshold
        rows = np.flatnonzero(np.count_nonzero(is_kept, axis=1) > count)
        if rows.size:
            equal = bits[rows] == threshold[rows]
            room = count - np.count_nonzero(is_kept[rows] & ~equal, axis=1)
            is_kept[rows] &= ~equal | (np.cumsum(equal, axis=1, dtype=np.int32) <= room[:, None])
        return np.flatnonzero(is_kept)

    def _scales(self, magnitudes: _Floats) -> _Floats:
        """The low and the high magnitude of every chunk: a row each, values that bfloat16 holds."""
        whole = magnitudes.size // self.keep * self.keep
        pairs = _two_means(magnitudes[:whole].reshape(-1, self.keep))
        if whole < magnitudes.size:
            pairs = np.concatenate((pairs, _two_means(magnitudes[None, whole:])), axis=1)
        bits = pairs.astype(np.float32).view(np.int32)
        rounded = bits + 0x7FFF + (bits >> 16 & 1) >> 16
        rounded[rounded < _LEAST] = 0
        scales: _Floats = (np.minimum(rounded, _INFINITY - 1) << 16).view(np.float32)
        return scales

    def _values(self, scales: _Floats, is_high: NDArray[np.bool_], is_negative: NDArray[np.bool_]) -> _Floats:
        low, high = scales
        chunk = self._chunk_of(is_high.size)
        values: _Floats = np.where(is_high, high[chunk], low[chunk])
        np.negative(values, out=values, where=is_negative)
        return values

    def _gaps(self, places: Places) -> Places:
        gaps = np.diff(places, prepend=-1) - 1
        gaps[:: self.keep] = places[:: self.keep] % self.chunk
        return gaps

    def _places(self, running: Places, count: int) -> Places:
        """Places from the sums of gaps that begin anew in every chunk."""
        ends = running[self.keep - 1 : -1 : self.keep] + 1
        chunk = self._chunk_of(running.size)
        places: Places = running - np.concatenate(([0], ends))[chunk]
        if int(places.max()) >= self.chunk or places[-1] + chunk[-1] * self.chunk >= count:
            raise Rejected(Reason.CORRUPT_PAYLOAD, "a gap leads out of its chunk")
        return places + chunk * self.chunk


def _two_means(magnitudes: _Floats) -> NDArray[np.float64]:
    """The means of the lower and the higher group of every row, a row each."""
    ordered = np.sort(magnitudes, axis=1).astype(np.float64)
    rows, count = ordered.shape
    if count == 1:
        return np.stack((ordered[:, 0], ordered[:, 0]))
    sums = np.cumsum(ordered, axis=1)
    lower, total = sums[:, :-1], sums[:, -1:]
    sizes = np.arange(1, count)
    # The squared error is least where the squares of the means, by size, are most.
    split = np.argmax(lower**2 / sizes + (total - lower) ** 2 / (count - sizes), axis=1)
    row = np.arange(rows)
    low, high = lower[row, split] / sizes[split], (total[:, 0] - lower[row, split]) / (count - sizes[split])
    zeros = count - np.count_nonzero(ordered, axis=1)
    high = np.where(zeros > 0, total[:, 0] / np.maximum(count - zeros, 1), high)
    return np.stack((np.where(zeros > 0, 0.0, low), high))

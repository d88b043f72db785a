"""What the sparse codecs share: a few elements of a slice, and the places where they stand.

Places are written as gaps: for each kept element the number of elements left out since the one before it (or since the
start), as zero or more bytes 255, each worth 255, and one byte below 255. zstd's Huffman codes bring that to within 2 %
of the entropy of random places, and below it where the largest elements stand together, as they do in real deltas.

The quantized form is the kept values (float32) and their places (int32), or all values if that is less.
"""

import math
from abc import ABC, abstractmethod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos_stream.codec.workspace import Workspace
from llmos_stream.errors import Reason, Rejected

ESCAPE = 255
_INFINITY = 0x7F800000

Places = NDArray[np.int64]
"""Indices of elements of a slice, ascending."""


class Sparse(ABC):
    """Decoding of a codec that keeps some elements; the others are zero. See `base.Codec` for the methods."""

    __slots__ = ()

    @abstractmethod
    def kept(self, count: int) -> int:
        """How many of `count` elements, at least one, are kept."""

    @abstractmethod
    def read(self, body: Tensor, count: int, kept: Tensor, workspace: Workspace) -> Places:
        """Write the kept values of the body of `count` elements into `kept`, and return their places.

        Raises:
            Rejected: CORRUPT_PAYLOAD where the body contradicts itself.
        """

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        kept = workspace.take("kept", self.kept(out.numel()), torch.float32)
        places = self.read(body, out.numel(), kept, workspace)
        out.zero_()
        out.numpy()[places] = kept.numpy()

    def quantized_size(self, count: int) -> int:
        return 4 * min(2 * self.kept(count), count)

    def unpacks_in_place(self) -> bool:
        return False

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        if self._is_dense(count):
            self.decode(body, quantized.view(torch.float32), workspace)
            return math.inf
        kept, places = quantized.view(2, -1)
        kept = kept.view(torch.float32)
        places.view(torch.int32).numpy()[:] = self.read(body, count, kept, workspace)
        return float(kept.abs().max())

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        if self._is_dense(count):
            return quantized.view(torch.float32)[begin:end]
        kept, places = quantized.view(torch.int32).view(2, -1).numpy()
        first, last = np.searchsorted(places, (begin, end))
        values = workspace.take("values", end - begin, torch.float32).zero_()
        values.numpy()[places[first:last] - begin] = kept.view(np.float32)[first:last]
        return values

    def _is_dense(self, count: int) -> bool:
        return 2 * self.kept(count) >= count


def magnitudes_of(values: Tensor, workspace: Workspace) -> Tensor:
    """Magnitudes (int32) of `values`: as integers their bits are ordered as they are.

    Raises:
        ValueError: There is NaN or infinity among them.
    """
    bits = workspace.take("magnitudes", values.numel(), torch.int32)
    torch.bitwise_and(values.view(torch.int32), 0x7FFFFFFF, out=bits)
    if int(bits.max()) >= _INFINITY:
        raise ValueError("NaN and infinity have no place among the largest elements")
    return bits


def write_gaps(gaps: Places) -> NDArray[np.uint8]:
    """The bytes of `gaps`."""
    escapes, rest = np.divmod(gaps, ESCAPE)
    ends = np.cumsum(escapes + 1)
    written = np.full(ends[-1], ESCAPE, np.uint8)
    written[ends - 1] = rest
    return written


def read_gaps(written: NDArray[np.uint8], count: int) -> Places:
    """For each of `count` gaps the place to which it leads where none begins anew.

    Raises:
        Rejected: CORRUPT_PAYLOAD where there are more gaps, or fewer.
    """
    ends = np.flatnonzero(written != ESCAPE)
    if ends.size != count or written[-1] == ESCAPE:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"the gaps name {ends.size} places, not {count}")
    places: Places = np.cumsum(written, dtype=np.int64)[ends] + np.arange(count)
    return places

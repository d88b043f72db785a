"""What a codec is: one slice of the flat vector to bytes and back.

A codec knows nothing of slices beyond the one it is given, of zstd or of sections (see `payload`). It writes a slice as
planes: byte streams whose statistics differ, so that zstd gets a block of its own for each. The body of a slice is
its planes end to end; all numbers in it are little endian.
"""

from typing import Protocol

from torch import Generator, Tensor

from llmos_stream.codec.scratch import Scratch


class Codec(Protocol):
    """Encodes and decodes slices. Immutable: temporaries live in the `scratch` of the call."""

    def encode(self, values: Tensor, generator: Generator | None, scratch: Scratch) -> list[Tensor]:
        """The planes (1-D uint8) of `values` (1-D float32, at least one element), valid until the next call.

        Stochastic codecs draw from `generator` and raise ValueError without one. Codecs other than the floating
        ones raise ValueError for NaN and infinity, which have no place on a grid or in an order.
        """
        ...

    def decode(self, body: Tensor, out: Tensor, scratch: Scratch) -> None:
        """Write the values of `body` (1-D uint8, of a size within `bounds`) into `out` (1-D float32).

        Raises Rejected(CORRUPT_PAYLOAD) where the body contradicts itself.
        """
        ...

    def bounds(self, count: int) -> tuple[int, int]:
        """Least and most bytes of the body of `count` elements."""
        ...

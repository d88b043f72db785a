"""What a codec is: one slice of the flat vector to bytes and back.

A codec knows nothing of slices beyond the one it is given, of zstd or of sections (see `payload`). It writes a slice as
planes: byte streams whose statistics differ, so that zstd gets a block of its own for each. The body of a slice is
its planes end to end; all numbers in it are little endian.

A decoded slice may also be kept in a compact form (see `compact`), from which any run of its values follows quickly.
"""

from typing import Protocol

from torch import Generator, Tensor

from llmos_stream.codec.scratch import Scratch

STEP = 1 << 18
"""Elements to which one operation after the other is applied: a MiB of float32, so that they stay in cache, and
temporaries take little. A multiple of every size of blocks."""


class Codec(Protocol):
    """Encodes and decodes slices. Immutable: temporaries live in the `scratch` of the call."""

    def encode(
        self, values: Tensor, generator: Generator | None, scratch: Scratch, lost: Tensor | None = None
    ) -> list[Tensor]:
        """The planes (1-D uint8) of `values` (1-D float32, at least one element), valid until the next call.

        `lost`, which may be `values` itself, receives what is left of them when the decoded values are taken away.
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

    def compact_size(self, count: int) -> int:
        """Bytes of the compact form of `count` elements; never more than 4 an element, and a scale for each block."""
        ...

    def in_place(self) -> bool:
        """Whether a body is as long as its compact form, and `condense` takes the same memory for both."""
        ...

    def condense(self, body: Tensor, count: int, compact: Tensor, scratch: Scratch) -> float:
        """Write the compact form of `body` into `compact` (1-D uint8 of `compact_size(count)`, aligned for float32).

        Returns a number that no magnitude among the values exceeds; infinity or NaN where that is not known at once.
        Raises as `decode` does.
        """
        ...

    def expand(
        self, compact: Tensor, count: int, begin: int, end: int, scratch: Scratch, factor: float | None = None
    ) -> Tensor:
        """The values (1-D float32) from `begin`, a multiple of STEP, to `end`: what `decode` writes there, bit for bit,
        each multiplied by `factor` where there is one.

        To be read only, and valid until the next call with this scratch.
        """
        ...

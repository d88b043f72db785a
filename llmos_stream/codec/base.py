"""What a codec is: one slice of the flat vector to bytes and back.

A codec sees one slice at a time, and neither zstd nor frames (see `payload`). It writes a slice as byte streams whose
statistics differ, so that zstd gives each a block of its own. The body of a slice is its streams end to end; all
numbers in it are little endian.

A decoded slice can also be kept in quantized form (see `quantized_form`), from which any run of its values follows
quickly.
"""

from typing import Protocol

from torch import Generator, Tensor

from llmos_stream.codec.workspace import Workspace

STEP = 1 << 18
"""Elements to which one operation after the other is applied: a MiB of float32, so that they stay in cache, and
temporaries take little. A multiple of every size of blocks."""


class Codec(Protocol):
    """Encodes and decodes slices. Immutable: temporaries live in the `workspace` of the call."""

    def encode(
        self, values: Tensor, generator: Generator | None, workspace: Workspace, residual: Tensor | None = None
    ) -> list[Tensor]:
        """Encode `values` (1-D float32, at least one element).

        Args:
            values: What to encode.
            generator: Randomness for stochastic rounding.
            workspace: Where the temporaries are.
            residual: Receives `values` less their decoded values. It may be `values` itself.

        Returns:
            The byte streams (1-D uint8), valid until the next call.

        Raises:
            ValueError: The codec rounds stochastically and there is no generator; or, of other codecs than the
                floating ones, `values` hold NaN or infinity, which have no place on a grid or in an order.
        """
        ...

    def decode(self, body: Tensor, out: Tensor, workspace: Workspace) -> None:
        """Write the values of `body` (1-D uint8, of a size within `bounds`) into `out` (1-D float32).

        Raises:
            Rejected: CORRUPT_PAYLOAD where the body contradicts itself.
        """
        ...

    def bounds(self, count: int) -> tuple[int, int]:
        """Least and most bytes of the body of `count` elements."""
        ...

    def quantized_size(self, count: int) -> int:
        """Bytes of the quantized form of `count` elements; never more than 4 an element and a scale for each block."""
        ...

    def unpacks_in_place(self) -> bool:
        """Whether a body is as long as its quantized form, and `unpack` takes the same memory for both."""
        ...

    def unpack(self, body: Tensor, count: int, quantized: Tensor, workspace: Workspace) -> float:
        """Write the quantized form of `body` into `quantized` (1-D uint8 of `quantized_size`, aligned for float32).

        Returns:
            A number that no magnitude among the values exceeds; infinity or NaN where that is not known at once.

        Raises:
            Rejected: As `decode`.
        """
        ...

    def dequantize(self, quantized: Tensor, count: int, begin: int, end: int, workspace: Workspace) -> Tensor:
        """The values (1-D float32) from `begin`, a multiple of STEP, to `end`: bit for bit what `decode` writes there.

        They must not be changed, and are valid until the next call with this workspace.
        """
        ...

"""A decoded payload in its codec's quantized form.

Decompressing costs most of a decode, and dequantizing next to nothing. So an update that is read twice (to validate
it, then to fold it) is kept as scales and steps, or as the elements that top-k has kept. Its values are computed a few
at a time where they are wanted: they stay in the processor's cache and never fill memory.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llmos_stream.codec.base import STEP, Codec
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import Workspace
from llmos_stream.types import CodecSpec

_ALIGNMENT = 64


def quantized_bytes(spec: CodecSpec, numel: int) -> int:
    """Bytes of the quantized form of `numel` elements.

    int8 and int4 take 1 an element, and scales; top-k 8 a kept element; the floating codecs 2 or 4 an element.

    Raises:
        Rejected: As `codec_for`.
    """
    codec = codec_for(spec)
    whole, rest = divmod(numel, SLICE)
    return whole * _slice_bytes(codec, SLICE) + (_slice_bytes(codec, rest) if rest else 0)


class QuantizedForm:
    """The quantized form of one payload of `numel` elements, in `buffer` (1-D uint8, of `quantized_bytes` at least).

    Several threads may `put` slices at once, each with a workspace of its own. It is read when all slices are there.

    Raises:
        ValueError: The buffer is too small.
    """

    def __init__(self, spec: CodecSpec, numel: int, buffer: Tensor) -> None:
        if buffer.dtype != torch.uint8 or buffer.numel() < quantized_bytes(spec, numel):
            raise ValueError(f"{quantized_bytes(spec, numel)} bytes are needed, not {buffer.numel()} of {buffer.dtype}")
        self.numel = numel
        self._codec = codec_for(spec)
        self._buffer = buffer
        self._stride = _slice_bytes(self._codec, SLICE)
        self._largest = [math.nan] * -(-numel // SLICE)

    def body_buffer(self, begin: int, count: int, workspace: Workspace) -> Tensor:
        """Where to write the body of the slice that `put` will be given."""
        if self._codec.unpacks_in_place():
            return self._slice(begin, count)
        return workspace.take("slice", self._codec.bounds(count)[1], torch.uint8)

    def put(self, begin: int, count: int, body: Tensor, workspace: Workspace) -> None:
        """Keep the slice of `count` elements from `begin` on.

        Raises:
            Rejected: CORRUPT_PAYLOAD where the body contradicts itself.
        """
        self._largest[begin // SLICE] = self._codec.unpack(body, count, self._slice(begin, count), workspace)

    @property
    def largest(self) -> float:
        """A number that no magnitude among the values exceeds; infinity or NaN where that is not known at once."""
        return math.nan if any(map(math.isnan, self._largest)) else max(self._largest, default=0.0)

    def values(self, workspace: Workspace, factor: float | None = None) -> Iterator[Tensor]:
        """The flat vector, times `factor`, STEP elements at a time (a slice's last run may be shorter).

        A run must not be changed, and is valid until the next is drawn.
        """
        for begin in range(0, self.numel, SLICE):
            yield from self.values_of(begin, workspace, factor)

    def values_of(self, begin: int, workspace: Workspace, factor: float | None = None) -> Iterator[Tensor]:
        """The same for the one slice that begins at `begin`, once it is there."""
        count = min(SLICE, self.numel - begin)
        return dequantized(self._codec, self._slice(begin, count), count, workspace, factor)

    def _slice(self, begin: int, count: int) -> Tensor:
        at = begin // SLICE * self._stride
        return self._buffer[at : at + self._codec.quantized_size(count)]


def dequantized(
    codec: Codec, quantized: Tensor, count: int, workspace: Workspace, factor: float | None = None
) -> Iterator[Tensor]:
    """The values of one slice's quantized form, times `factor`, STEP elements at a time."""
    for begin in range(0, count, STEP):
        values = codec.dequantize(quantized, count, begin, min(begin + STEP, count), workspace)
        if factor is not None:
            values = torch.mul(values, factor, out=workspace.take("values", values.numel(), torch.float32))
        yield values


def unpacked_values(
    body: Tensor, codec: Codec, count: int, workspace: Workspace, factor: float | None = None
) -> Iterator[Tensor]:
    """The `count` values of a slice's body, as `dequantized` gives them."""
    quantized = workspace.take("quantized", codec.quantized_size(count), torch.uint8)
    codec.unpack(body, count, quantized, workspace)
    return dequantized(codec, quantized, count, workspace, factor)


def _slice_bytes(codec: Codec, count: int) -> int:
    return -(-codec.quantized_size(count) // _ALIGNMENT) * _ALIGNMENT

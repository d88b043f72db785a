"""A decoded payload in its codec's own compact form.

Decompressing costs most of a decode, and expanding what is decompressed next to nothing. So an update that is looked
at twice (to validate it, then to fold it) is kept as scales and steps, or as what top-k has kept, and its values are
made anew, a few at a time, where they are wanted: in the processor's cache and not in memory.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llmos_stream.codec.base import STEP, Codec
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.registry import codec_for
from llmos_stream.codec.scratch import Scratch
from llmos_stream.types import CodecSpec

_ALIGNMENT = 64


def compact_bytes(spec: CodecSpec, numel: int) -> int:
    """Bytes of the compact form of `numel` elements: 1 an element and scales for int8 and int4, 8 a kept one for
    top-k, 2 or 4 an element for the floating codecs. Raises Rejected as `codec_for` does."""
    codec = codec_for(spec)
    whole, rest = divmod(numel, SLICE)
    return whole * _slice_bytes(codec, SLICE) + (_slice_bytes(codec, rest) if rest else 0)


class Compact:
    """The compact form of one payload of `numel` elements, in `room` (1-D uint8, of `compact_bytes` at least).

    Filled slice by slice by `put`, which threads may call at once, each with a scratch of its own. Read when whole.
    Raises ValueError for a room that is too small.
    """

    def __init__(self, spec: CodecSpec, numel: int, room: Tensor) -> None:
        if room.dtype != torch.uint8 or room.numel() < compact_bytes(spec, numel):
            raise ValueError(f"{compact_bytes(spec, numel)} bytes are needed, not {room.numel()} of {room.dtype}")
        self.numel = numel
        self._codec = codec_for(spec)
        self._room = room
        self._stride = _slice_bytes(self._codec, SLICE)
        self._largest = [math.nan] * -(-numel // SLICE)

    def room_for(self, begin: int, count: int, scratch: Scratch) -> Tensor:
        """Where to put the body of the slice that `put` will be given."""
        if self._codec.in_place():
            return self._slice(begin, count)
        return scratch.take("slice", self._codec.bounds(count)[1], torch.uint8)

    def put(self, begin: int, count: int, body: Tensor, scratch: Scratch) -> None:
        """Keep the slice of `count` elements from `begin` on. Raises Rejected(CORRUPT_PAYLOAD)."""
        self._largest[begin // SLICE] = self._codec.condense(body, count, self._slice(begin, count), scratch)

    @property
    def largest(self) -> float:
        """A number that no magnitude among the values exceeds; infinity or NaN where that is not known at once."""
        return math.nan if any(map(math.isnan, self._largest)) else max(self._largest, default=0.0)

    def values(self, scratch: Scratch, factor: float | None = None) -> Iterator[Tensor]:
        """The flat vector, times `factor`, STEP elements at a time (a slice's last run may be shorter), each to be read
        only and valid until the next is drawn."""
        for begin in range(0, self.numel, SLICE):
            yield from self.values_of(begin, scratch, factor)

    def values_of(self, begin: int, scratch: Scratch, factor: float | None = None) -> Iterator[Tensor]:
        """The same for the one slice that begins at `begin`, once it is there."""
        count = min(SLICE, self.numel - begin)
        return expanded(self._codec, self._slice(begin, count), count, scratch, factor)

    def _slice(self, begin: int, count: int) -> Tensor:
        at = begin // SLICE * self._stride
        return self._room[at : at + self._codec.compact_size(count)]


def expanded(
    codec: Codec, compact: Tensor, count: int, scratch: Scratch, factor: float | None = None
) -> Iterator[Tensor]:
    """The values of one slice's compact form, times `factor`, STEP elements at a time."""
    for begin in range(0, count, STEP):
        yield codec.expand(compact, count, begin, min(begin + STEP, count), scratch, factor)


def _slice_bytes(codec: Codec, count: int) -> int:
    return -(-codec.compact_size(count) // _ALIGNMENT) * _ALIGNMENT

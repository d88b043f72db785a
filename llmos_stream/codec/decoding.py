"""Decoding by several threads at once, and slice by slice.

The sections of a payload are independent of one another. Cutting one off is a matter of views, so that is done in
order and under a lock; all the rest is done by whichever thread has cut.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from threading import Lock

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.compact import Compact, expanded
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.registry import codec_for
from llmos_stream.codec.scratch import Scratch, borrowed
from llmos_stream.codec.sections import PartReader, cut, inflate, unpack
from llmos_stream.types import CodecSpec, Part

Seen = Callable[[int, Tensor], None]
"""Called with the place of the first of some values and the values (to be read only) while they are in cache."""
_Room = Callable[[int, int, Scratch], Tensor]
_Put = Callable[[int, int, Tensor, Scratch], None]


class Decoding:
    """One payload being decoded: `work` in as many threads as there are to spare, then `finish`.

    `room(begin, count, scratch)` says where the body of a slice goes and `put(begin, count, body, scratch)` makes
    something of it; both are called by several threads at once. Of several errors the one that lies first in the
    payload is told, so that the outcome depends on the payload alone.
    """

    def __init__(self, parts: Iterable[Part], spec: CodecSpec, numel: int, room: _Room, put: _Put) -> None:
        self._codec = codec_for(spec)
        self._numel = numel
        self._room, self._put = room, put
        self._reader = PartReader(parts)
        self._lock = Lock()
        self._next = 0
        self._failed_at: float = math.inf
        self._error: BaseException | None = None

    @property
    def slices(self) -> int:
        """How many there are: more threads than that have nothing to do."""
        return max(1, -(-self._numel // SLICE))

    def work(self) -> None:
        """Decode until nothing is left or something is wrong. Raises nothing: see `finish`."""
        zstd = zstandard.ZstdDecompressor()
        with borrowed() as scratch:
            while (section := self._cut()) is not None:
                begin, count, frame = section
                try:
                    least, most = self._codec.bounds(count)
                    body = inflate(frame, zstd, least, most, self._room(begin, count, scratch))
                    self._put(begin, count, body, scratch)
                except BaseException as error:  # noqa: BLE001 (raised by `finish`)
                    with self._lock:
                        self._fail(begin, error)

    def finish(self) -> None:
        """Call when every `work` has returned. Raises Rejected as `payload.decode` does, or what `put` raised."""
        if self._error is not None:
            raise self._error

    def _cut(self) -> tuple[int, int, Part] | None:
        with self._lock:
            begin = self._next
            if self._error is not None or begin > self._numel:
                return None
            count = min(SLICE, self._numel - begin)
            try:
                if not count:
                    self._next = self._numel + 1
                    self._reader.finish()
                    return None
                frame = cut(self._reader, self._codec.bounds(count)[1])
            except BaseException as error:  # noqa: BLE001 (raised by `finish`)
                self._fail(begin, error)
                return None
            self._next = begin + count
            return begin, count, frame

    def _fail(self, at: int, error: BaseException) -> None:
        if at < self._failed_at:
            self._failed_at, self._error = at, error


def compacting(
    parts: Iterable[Part], spec: CodecSpec, numel: int, room: Tensor, seen: Seen | None = None
) -> tuple[Decoding, Compact]:
    """Decodes into the compact form (see `compact`), which is whole when the decoding has finished.

    Values are made for `seen` alone: leave it out where they are not wanted now. Raises ValueError for too small a
    `room`.
    """
    compact = Compact(spec, numel, room)
    if seen is None:
        return Decoding(parts, spec, numel, compact.room_for, compact.put), compact
    look = seen

    def put(begin: int, count: int, body: Tensor, scratch: Scratch) -> None:
        compact.put(begin, count, body, scratch)
        for values in compact.values_of(begin, scratch):
            look(begin, values)
            begin += values.numel()

    return Decoding(parts, spec, numel, compact.room_for, put), compact


def reading(parts: Iterable[Part], spec: CodecSpec, numel: int, seen: Seen) -> Decoding:
    """Decodes for `seen` alone, STEP elements at a time (a slice's last run may be shorter), and keeps nothing."""
    codec = codec_for(spec)

    def room(begin: int, count: int, scratch: Scratch) -> Tensor:
        return scratch.take("slice", codec.bounds(count)[1], torch.uint8)

    def put(begin: int, count: int, body: Tensor, scratch: Scratch) -> None:
        compact = scratch.take("compact", codec.compact_size(count), torch.uint8)
        codec.condense(body, count, compact, scratch)
        for values in expanded(codec, compact, count, scratch):
            seen(begin, values)
            begin += values.numel()

    return Decoding(parts, spec, numel, room, put)


def slices(parts: Iterable[Part], spec: CodecSpec, numel: int, factor: float | None = None) -> Iterator[Tensor]:
    """The flat vector, times `factor`, STEP elements at a time (a slice's last run may be shorter).

    Each is to be read only and valid until the next is drawn. Holds one slice. Raises Rejected as `payload.decode`
    does, while they are drawn.
    """
    codec, reader, zstd = codec_for(spec), PartReader(parts), zstandard.ZstdDecompressor()
    with borrowed() as scratch:
        for begin in range(0, numel, SLICE):
            count = min(SLICE, numel - begin)
            body = unpack(reader, zstd, *codec.bounds(count), scratch)
            compact = scratch.take("compact", codec.compact_size(count), torch.uint8)
            codec.condense(body, count, compact, scratch)
            yield from expanded(codec, compact, count, scratch, factor)
    reader.finish()

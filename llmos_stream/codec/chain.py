"""From one global version to the next as a quantised delta, with error feedback on the server's side.

With x_p the parent's weights as every reader has them, e_p the residual (zero after a full version) and w the weights
that the aggregation made of x_p, a delta version and what it leaves behind are

    q = C(w + e_p - x_p)        x = x_p + q        e = C(w + e_p - x)

so x is what every reader computes, bit for bit, and what the codec leaves out of one version goes into the next (as
in `feedback`, for readers in place of clients). The residual is kept as the codec writes it, so that remembering it
costs a fraction of the model and a restart changes nothing; what C leaves out of the residual itself, a quarter of a
percent of the delta with int4, is let go. A full version is w + e_p as it stands and owes nothing.

Everything goes slice by slice, by several threads where there are some, and writes over its input. Rounding is to the
nearest step, so there is no randomness.
"""

from collections.abc import Iterable, Iterator, Sequence
from threading import Lock
from typing import NamedTuple

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.base import Codec
from llmos_stream.codec.compact import expanded
from llmos_stream.codec.layout import check_flat
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.registry import codec_for
from llmos_stream.codec.scratch import Scratch, borrowed
from llmos_stream.codec.sections import PartReader, compressor, cut, inflate, pack
from llmos_stream.types import CodecSpec, Part

_LARGEST = 1e37
"""Weights beyond this could differ by more than float32 holds."""


class Residual(NamedTuple):
    """What readers are owed, as a payload."""

    codec: CodecSpec
    parts: Sequence[Part]


class EncodedDelta(NamedTuple):
    """The payload of a delta version, and the residual that it leaves."""

    parts: list[bytes]
    residual: Residual


def fits_delta(parent: Tensor, weights: Tensor) -> bool:
    """Whether a delta between these flat vectors can be quantised: both finite, and not absurdly large."""
    if not weights.numel():
        return False
    extremes = torch.stack([*parent.aminmax(), *weights.aminmax()]).abs()
    return bool((extremes < _LARGEST).all())  # comparisons with NaN are false


class DeltaEncoding:
    """The delta version that brings readers of `parent` as near to `weights` plus `residual` as `spec` can.

    Call `work` in as many threads as there are to spare, then `finish`. `weights` (flat) is overwritten with what
    readers will have. `residual` is what the step before left, None where nothing is owed. `spec` is a block codec
    that rounds to nearest. Ask `fits_delta` first: weights that it turns down cannot be encoded.
    """

    def __init__(self, parent: Tensor, weights: Tensor, residual: Residual | None, spec: CodecSpec) -> None:
        check_flat(parent)
        check_flat(weights, parent.numel())
        self._parent, self._weights, self._spec = parent, weights, spec
        self._codec = codec_for(spec)
        self._owed = None if residual is None else _Sections(residual.parts, residual.codec)
        self._lock = Lock()
        self._next = 0
        self._made: dict[int, tuple[bytes, bytes]] = {}
        self._error: BaseException | None = None

    def work(self) -> None:
        """Encode slices until none is left. Raises nothing: see `finish`."""
        zstd = compressor(1)
        try:
            with borrowed() as scratch:
                while (taken := self._take()) is not None:
                    begin, owed = taken
                    self._made[begin] = self._slice(begin, owed, zstd, scratch)
        except BaseException as error:  # noqa: BLE001 (raised by `finish`)
            self._error = self._error or error

    def finish(self) -> EncodedDelta:
        """When every `work` has returned. Raises ValueError for a codec that needs randomness, Rejected for a
        damaged residual; `weights` are undefined then.
        """
        if self._error is not None:
            raise self._error
        if self._owed is not None:
            self._owed.finish()
        made = [self._made[begin] for begin in sorted(self._made)]
        return EncodedDelta([delta for delta, _ in made], Residual(self._spec, [residual for _, residual in made]))

    def _take(self) -> tuple[int, Part | None] | None:
        with self._lock:
            begin = self._next
            if begin >= self._weights.numel() or self._error is not None:
                return None
            self._next = begin + SLICE
            return begin, None if self._owed is None else self._owed.cut(min(SLICE, self._weights.numel() - begin))

    def _slice(
        self, begin: int, owed: Part | None, zstd: zstandard.ZstdCompressor, scratch: Scratch
    ) -> tuple[bytes, bytes]:
        before, values = self._parent[begin : begin + SLICE], self._weights[begin : begin + SLICE]
        if self._owed is not None and owed is not None:
            self._owed.add(owed, values, scratch)
        rest = torch.sub(values, before, out=scratch.take("slice", values.numel(), torch.float32))
        planes = self._codec.encode(rest, None, scratch)
        section = pack(zstd, planes)
        body = torch.cat(planes, out=scratch.take("body", sum(map(len, planes)), torch.uint8))
        at = 0
        for decoded in _values(body, self._codec, values.numel(), scratch):
            here = slice(at, at := at + decoded.numel())
            reached = torch.add(before[here], decoded, out=rest[here])
            values[here].sub_(reached)
        residual = pack(zstd, self._codec.encode(values, None, scratch))
        values.copy_(rest)
        return section, residual


def encode_delta(parent: Tensor, weights: Tensor, residual: Residual | None, spec: CodecSpec) -> EncodedDelta:
    """All of a `DeltaEncoding` in this thread.

    Raises as that does, and ValueError, before anything has changed, for weights that `fits_delta` turns down.
    """
    if not fits_delta(parent, weights):
        raise ValueError("these weights differ by more than a delta can say")
    encoding = DeltaEncoding(parent, weights, residual, spec)
    encoding.work()
    return encoding.finish()


def settle(weights: Tensor, residual: Residual | None) -> None:
    """Add what readers are owed to `weights` (flat, in place), as a full version does.

    Raises Rejected as `apply_delta` does.
    """
    if residual is not None:
        apply_delta(weights, residual.parts, residual.codec)


def apply_delta(weights: Tensor, parts: Iterable[Part], spec: CodecSpec) -> None:
    """Add the payload `parts` to `weights` (flat, in place), slice by slice.

    Raises Rejected as `payload.decode` does; the weights are undefined then.
    """
    sections = _Sections(parts, spec)
    with borrowed() as scratch:
        for values in torch.split(check_flat(weights), SLICE):
            sections.add(sections.cut(values.numel()), values, scratch)
    sections.finish()


class _Sections:
    """Slices of a payload, to be added to a vector's: `cut` off in order, `add`ed by any thread."""

    def __init__(self, parts: Iterable[Part], spec: CodecSpec) -> None:
        self._reader = PartReader(parts)
        self._codec = codec_for(spec)

    def cut(self, count: int) -> Part:
        return cut(self._reader, self._codec.bounds(count)[1])

    def add(self, section: Part, values: Tensor, scratch: Scratch) -> None:
        least, most = self._codec.bounds(values.numel())
        room = scratch.take("body", most, torch.uint8)
        body = inflate(section, zstandard.ZstdDecompressor(), least, most, room)
        at = 0
        for decoded in _values(body, self._codec, values.numel(), scratch):
            values[at : at + decoded.numel()].add_(decoded)
            at += decoded.numel()

    def finish(self) -> None:
        self._reader.finish()


def _values(body: Tensor, codec: Codec, count: int, scratch: Scratch) -> Iterator[Tensor]:
    """The `count` values of a slice's body, a few at a time: see `compact.expanded`."""
    compact = scratch.take("compact", codec.compact_size(count), torch.uint8)
    codec.condense(body, count, compact, scratch)
    return expanded(codec, compact, count, scratch)

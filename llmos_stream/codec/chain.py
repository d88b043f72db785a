"""From one global version to the next as a quantised delta, with error feedback on the server's side.

With x_p the parent's weights as every reader has them, e_p the residual (zero after a full version) and w the weights
that the aggregation made of x_p, a delta version and what it leaves behind are

    q = C(w + e_p - x_p)        x = x_p + q        e = C(w + e_p - x)

so x is what every reader computes, bit for bit, and what the codec leaves out of one version goes into the next (as
in `feedback`, for readers in place of clients). The residual is kept as the codec writes it, so that remembering it
costs a fraction of the model and a restart changes nothing; what C leaves out of the residual itself, a quarter of a
percent of the delta with int4, is let go. A full version is w + e_p as it stands and owes nothing.

Everything goes slice by slice and writes over its input. Rounding is to the nearest step, so there is no randomness.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.base import Codec
from llmos_stream.codec.layout import check_flat
from llmos_stream.codec.payload import SLICE
from llmos_stream.codec.registry import codec_for
from llmos_stream.codec.scratch import Scratch
from llmos_stream.codec.sections import PartReader, compressor, pack, unpack
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


def encode_delta(parent: Tensor, weights: Tensor, residual: Residual | None, spec: CodecSpec) -> EncodedDelta:
    """The delta version that brings readers of `parent` as near to `weights` plus `residual` as `spec` can.

    `weights` (flat) is overwritten with what readers will have. `residual` is what the step before left, None where
    nothing is owed. `spec` is a block codec that rounds to nearest. Raises ValueError for weights that `fits_delta`
    turns down, or a codec that needs randomness; Rejected for a damaged residual.
    """
    codec = codec_for(spec)
    check_flat(parent)
    check_flat(weights, parent.numel())
    if not fits_delta(parent, weights):
        raise ValueError("these weights differ by more than a delta can say")
    owed = None if residual is None else _Sections(residual.parts, residual.codec)
    zstd, scratch = compressor(1), Scratch()
    delta_parts: list[bytes] = []
    residual_parts: list[bytes] = []
    for begin in range(0, weights.numel(), SLICE):
        before, values = parent[begin : begin + SLICE], weights[begin : begin + SLICE]
        if owed is not None:
            owed.add_to(values)
        rest = torch.sub(values, before, out=scratch.take("rest", values.numel(), torch.float32))
        delta = scratch.take("delta", values.numel(), torch.float32)
        delta_parts.append(_encode(rest, codec, zstd, scratch, delta))
        reached = torch.add(before, delta, out=rest)
        values.sub_(reached)
        residual_parts.append(_encode(values, codec, zstd, scratch))
        values.copy_(reached)
    if owed is not None:
        owed.finish()
    return EncodedDelta(delta_parts, Residual(spec, residual_parts))


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
    for values in torch.split(check_flat(weights), SLICE):
        sections.add_to(values)
    sections.finish()


class _Sections:
    """Slices of a payload, to be added to a vector's one after the other."""

    def __init__(self, parts: Iterable[Part], spec: CodecSpec) -> None:
        self._reader = PartReader(parts)
        self._codec = codec_for(spec)
        self._zstd = zstandard.ZstdDecompressor()
        self._scratch = Scratch()

    def add_to(self, values: Tensor) -> None:
        decoded = self._scratch.take("decoded", values.numel(), torch.float32)
        least, most = self._codec.bounds(values.numel())
        self._codec.decode(unpack(self._reader, self._zstd, least, most, self._scratch), decoded, self._scratch)
        values.add_(decoded)

    def finish(self) -> None:
        self._reader.finish()


def _encode(
    values: Tensor, codec: Codec, zstd: zstandard.ZstdCompressor, scratch: Scratch, decoded: Tensor | None = None
) -> bytes:
    """One section; `decoded`, where given, is filled with what a reader will make of it."""
    planes = codec.encode(values, None, scratch)
    if decoded is not None:
        body = torch.cat(planes, out=scratch.take("body", sum(map(len, planes)), torch.uint8))
        codec.decode(body, decoded, scratch)
    return pack(zstd, planes)

"""From one global version to the next as a quantised delta, with error feedback on the server's side.

With x_p the parent's weights as every reader has them, e_p the residual (zero after a full version) and w the weights
that the aggregation made of x_p, a delta version and what it leaves behind are

    q = C(w + e_p - x_p)        x = x_p + q        e = C(w + e_p - x)

so x is what every reader computes, bit for bit, and what the codec leaves out of one version goes into the next (as
in `feedback`, for readers in place of clients). The residual is kept as the codec writes it, so that remembering it
costs a fraction of the model and a restart changes nothing; what C leaves out of the residual itself, a quarter of a
percent of the delta with int4, is dropped. A sparse codec would drop most of it, so what that leaves is kept in int8,
which drops 0.6 % of a normal vector's length. A full version is w + e_p as it stands and leaves no residual.

Everything goes slice by slice, by several threads where there are some, and writes over its input. Rounding is to the
nearest step, so there is no randomness.
"""

from collections.abc import Iterable, Sequence
from threading import Lock
from typing import NamedTuple

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.frames import PartReader, compress, compressor, decompress, take_frame
from llmos_stream.codec.layout import check_flat
from llmos_stream.codec.payload import SLICE, read_buffers
from llmos_stream.codec.quantized_form import unpacked_values
from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import Workspace, borrowed
from llmos_stream.types import CodecId, CodecSpec, Part

_BLOCKS = frozenset({CodecId.INT8, CodecId.INT4})
_OF_SPARSE = CodecSpec(CodecId.INT8, {"block": 256, "stochastic": 0})
_LARGEST = 1e37
"""Weights beyond this could differ by more than float32 holds."""


class Residual(NamedTuple):
    """The error-feedback residual of a chain of delta versions, as a payload."""

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
    readers will have. `residual` is what the last version left, None after a full one. `spec` is topk2, or a block
    codec that rounds to nearest. Ask `fits_delta` first: weights that it turns down cannot be encoded.
    """

    def __init__(self, parent: Tensor, weights: Tensor, residual: Residual | None, spec: CodecSpec) -> None:
        check_flat(parent)
        check_flat(weights, parent.numel())
        self._parent, self._weights = parent, weights
        self._codec = codec_for(spec)
        self._residual_spec = spec if spec.id in _BLOCKS else _OF_SPARSE
        self._residual_codec = codec_for(self._residual_spec)
        self._old_residual = None if residual is None else _Payload(residual.parts, residual.codec)
        self._lock = Lock()
        self._next = 0
        self._made: dict[int, tuple[bytes, bytes]] = {}
        self._error: BaseException | None = None

    def work(self) -> None:
        """Encode slices until none is left. Raises nothing: see `finish`."""
        zstd = compressor(1)
        try:
            with borrowed() as workspace:
                while (taken := self._take()) is not None:
                    begin, old_residual = taken
                    self._made[begin] = self._slice(begin, old_residual, zstd, workspace)
        except BaseException as error:  # noqa: BLE001 (raised by `finish`)
            self._error = self._error or error

    def finish(self) -> EncodedDelta:
        """Call when every `work` has returned. After an error `weights` are undefined.

        Raises:
            ValueError: The codec needs randomness.
            Rejected: The residual is damaged.
        """
        if self._error is not None:
            raise self._error
        if self._old_residual is not None:
            self._old_residual.finish()
        made = [self._made[begin] for begin in sorted(self._made)]
        residual = Residual(self._residual_spec, [left for _, left in made])
        return EncodedDelta([delta for delta, _ in made], residual)

    def _take(self) -> tuple[int, Part | None] | None:
        with self._lock:
            begin = self._next
            if begin >= self._weights.numel() or self._error is not None:
                return None
            self._next = begin + SLICE
            return begin, None if self._old_residual is None else self._old_residual.take(
                min(SLICE, self._weights.numel() - begin)
            )

    def _slice(
        self, begin: int, old_residual: Part | None, zstd: zstandard.ZstdCompressor, workspace: Workspace
    ) -> tuple[bytes, bytes]:
        before, values = self._parent[begin : begin + SLICE], self._weights[begin : begin + SLICE]
        if self._old_residual is not None and old_residual is not None:
            self._old_residual.add(old_residual, values, workspace)
        rest = torch.sub(values, before, out=workspace.take("slice", values.numel(), torch.float32))
        streams = self._codec.encode(rest, None, workspace)
        frame = compress(zstd, streams)
        body = torch.cat(streams, out=workspace.take("body", sum(map(len, streams)), torch.uint8))
        at = 0
        for decoded in unpacked_values(body, self._codec, values.numel(), workspace):
            here = slice(at, at := at + decoded.numel())
            reached = torch.add(before[here], decoded, out=rest[here])
            values[here].sub_(reached)
        residual = compress(zstd, self._residual_codec.encode(values, None, workspace))
        values.copy_(rest)
        return frame, residual


def begin_delta(
    number: int,
    full: int | None,
    every: int,
    parent: Tensor | None,
    weights: Tensor,
    residual: Residual | None,
    spec: CodecSpec,
) -> DeltaEncoding | None:
    """The encoding of version `number` as a delta on its parent; None where it is to be written in full.

    So is the first, each that comes `every` versions after the last `full` one, and one that a delta cannot say.
    """
    if full is None or number - full >= every or parent is None or not fits_delta(parent, weights):
        return None
    return DeltaEncoding(parent, weights, residual, spec)


def encode_delta(parent: Tensor, weights: Tensor, residual: Residual | None, spec: CodecSpec) -> EncodedDelta:
    """All of a `DeltaEncoding` in this thread.

    Raises:
        ValueError: As `DeltaEncoding.finish`; or `fits_delta` turns the weights down, and nothing has changed.
        Rejected: As `DeltaEncoding.finish`.
    """
    if not fits_delta(parent, weights):
        raise ValueError("these weights differ by more than a delta can say")
    encoding = DeltaEncoding(parent, weights, residual, spec)
    encoding.work()
    return encoding.finish()


def add_residual(weights: Tensor, residual: Residual | None) -> None:
    """Add the residual to `weights` (flat, in place), as a full version does.

    Raises:
        Rejected: As `apply_delta`.
    """
    if residual is not None:
        apply_delta(weights, residual.parts, residual.codec)


def apply_delta(weights: Tensor, parts: Iterable[Part], spec: CodecSpec, buffers: Tensor | None = None) -> None:
    """Add the payload `parts` to `weights` (flat, in place), slice by slice. After an error they are undefined.

    `buffers` (flat) is overwritten with the values that follow.

    Raises:
        Rejected: As `payload.decode`.
    """
    payload = _Payload(parts, spec)
    with borrowed() as workspace:
        for values in torch.split(check_flat(weights), SLICE):
            payload.add(payload.take(values.numel()), values, workspace)
    payload.finish(buffers)


class _Payload:
    """The slices of a payload, to be added to those of a vector: taken in order, added by any thread."""

    def __init__(self, parts: Iterable[Part], spec: CodecSpec) -> None:
        self._reader = PartReader(parts)
        self._codec = codec_for(spec)

    def take(self, count: int) -> Part:
        return take_frame(self._reader, self._codec.bounds(count)[1])

    def add(self, frame: Part, values: Tensor, workspace: Workspace) -> None:
        least, most = self._codec.bounds(values.numel())
        buffer = workspace.take("body", most, torch.uint8)
        body = decompress(frame, zstandard.ZstdDecompressor(), least, most, buffer)
        at = 0
        for decoded in unpacked_values(body, self._codec, values.numel(), workspace):
            values[at : at + decoded.numel()].add_(decoded)
            at += decoded.numel()

    def finish(self, buffers: Tensor | None = None) -> None:
        read_buffers(self._reader, buffers)

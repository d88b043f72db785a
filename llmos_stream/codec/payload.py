"""Payloads: the flat vector to bytes and back, slice by slice.

The flat vector is cut into slices of 2^20 elements; the last may be shorter, and an empty vector has none. A payload
is one frame for each slice, in order, with nothing before, between or after them:

| field | bytes | meaning |
| --- | --- | --- |
| length | 4 | unsigned little-endian number of bytes of the zstd frame |
| content | length | one zstd frame: content size in its header, no dictionary, window at most twice the body |

What is compressed is the slice's body as the codec writes it (`floating`, `blocks`, `sparse`), whose size follows
from codec and slice length, exactly or (top-k) within bounds. Codec, parameters and number of elements do not stand
in the payload: the head names the first two and the layout the third.

Where the layout has buffers, the payload of an update and of a delta version goes on with frames of their values, in
the float32 codec: what a codec may lose is lost of parameters alone.

Frames are independent of one another, so both directions hold one slice at a time beside input and output.
"""

import hashlib
from collections.abc import Iterable, Iterator

import torch
import zstandard
from torch import Generator, Tensor

from llmos_stream.codec.base import Codec
from llmos_stream.codec.frames import LENGTH, PartReader, compress, compressor, frame_bound, read_frame
from llmos_stream.codec.layout import check_flat
from llmos_stream.codec.table import codec_for
from llmos_stream.codec.workspace import borrowed
from llmos_stream.types import CodecId, CodecSpec, Part

SLICE = 1 << 20
"""Elements of a slice. Part of the format."""
VALUES = CodecSpec(CodecId.FLOAT32)
"""How buffers travel."""


def encode(
    flat: Tensor,
    spec: CodecSpec,
    *,
    level: int = 1,
    generator: Generator | None = None,
    residual: Tensor | None = None,
) -> Iterator[bytes]:
    """The frames of `flat`, made as they are asked for; `level` is zstd's (see `frames.compressor`).

    `residual`, a flat vector of the same length, receives `flat - decode(encode(flat))` as the frames are drawn; it may
    be `flat` itself. The same input, spec and generator state give the same bytes whatever the number of threads.

    Raises:
        ValueError: Stochastic rounding without `generator`; and, while frames are drawn, NaN or infinity with int8,
            int4 and top-k. The floating codecs pass them on; `core` refuses such updates.
    """
    codec = codec_for(spec)
    check_flat(flat)
    if residual is not None:
        check_flat(residual, flat.numel())
    return _frames(flat.detach(), codec, level, generator, residual)


def _frames(
    flat: Tensor, codec: Codec, level: int, generator: Generator | None, residual: Tensor | None
) -> Iterator[bytes]:
    zstd = compressor(level)
    for begin in range(0, flat.numel(), SLICE):
        values = flat[begin : begin + SLICE]
        rest = None if residual is None else residual[begin : begin + SLICE]
        with borrowed() as workspace:
            frame = compress(zstd, codec.encode(values, generator, workspace, rest))
        yield frame


def with_buffers(frames: Iterable[bytes], buffers: Tensor) -> Iterator[bytes]:
    """The frames of parameters, then those of `buffers` (a flat vector), made as they are asked for."""
    yield from frames
    yield from encode(buffers, VALUES)


def decode(
    parts: Iterable[Part], spec: CodecSpec, numel: int, out: Tensor | None = None, buffers: Tensor | None = None
) -> Tensor:
    """The flat vector of `numel` elements that `parts`, cut anywhere, hold; `out`, where given, is filled.

    `buffers`, a flat vector, is filled with the values that follow; without it nothing may follow.

    Nothing is allocated by what the payload claims beyond what `spec` and `numel` imply. The result may hold NaN or
    infinity if the sender put them there. After an error the contents of `out` are undefined.

    Raises:
        Rejected: UNKNOWN_CODEC, BAD_CODEC_PARAMS, TRUNCATED (the parts end early), DECOMPRESSION_BOMB (a frame claims
            more than spec and numel imply) or CORRUPT_PAYLOAD (bytes left over, or zstd or the codec objects).
    """
    codec = codec_for(spec)
    flat = torch.empty(numel, dtype=torch.float32, device="cpu") if out is None else check_flat(out, numel)
    reader = PartReader(parts)
    _read(reader, codec, flat)
    read_buffers(reader, buffers)
    return flat


def read_buffers(reader: PartReader, buffers: Tensor | None) -> None:
    """Fill `buffers` (a flat vector) from the frames that follow those of the parameters; nothing may follow them.

    Raises:
        Rejected: As `decode`.
    """
    if buffers is not None:
        _read(reader, codec_for(VALUES), check_flat(buffers))
    reader.finish()


def _read(reader: PartReader, codec: Codec, flat: Tensor) -> None:
    zstd = zstandard.ZstdDecompressor()
    with borrowed() as workspace:
        for begin in range(0, flat.numel(), SLICE):
            values = flat[begin : begin + SLICE]
            least, most = codec.bounds(values.numel())
            codec.decode(read_frame(reader, zstd, least, most, workspace), values, workspace)


def max_payload_size(spec: CodecSpec, numel: int, buffers: int = 0) -> int:
    """An upper bound, in bytes, of the payload of `numel` elements, followed by the values of `buffers` more.

    Raises:
        Rejected: As `codec_for`.
    """
    if buffers:
        return max_payload_size(spec, numel) + max_payload_size(VALUES, buffers)
    codec = codec_for(spec)
    whole, rest = divmod(numel, SLICE)
    return whole * _max_frame(codec, SLICE) + (_max_frame(codec, rest) if rest else 0)


def _max_frame(codec: Codec, count: int) -> int:
    return LENGTH.size + frame_bound(codec.bounds(count)[1])


def weights_digest(flat: Tensor) -> bytes:
    """SHA-256 over the elements of `flat` as little-endian float32."""
    return hashlib.sha256(check_flat(flat).detach().numpy().astype("<f4", copy=False).data).digest()

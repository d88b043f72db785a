"""Frames of a payload: reading them across parts, and zstd with every size known beforehand.

A frame's header is read first and held against the size that codec and slice length imply. Then the frame is
decompressed where its body is wanted: zstd does that in one go, without a window of its own, where the whole frame
goes in and everything fits. (`ZstdDecompressor.decompress` would allocate its output afresh, and by what the header
claims, whatever `max_output_size` says.)
"""

import struct
from collections.abc import Iterable, Sequence

import torch
import zstandard
from torch import Tensor

from llmos_stream.codec.workspace import Workspace
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Part

LENGTH = struct.Struct("<I")
_LEAST_WINDOW = 1024
_BLOCK_HEADER = 3
_REPEATED = 1
_CHECKSUM = 4
_UNKNOWN_SIZE = zstandard.CONTENTSIZE_UNKNOWN


class PartReader:
    """Takes byte runs from a sequence of parts, which it draws one at a time and never joins."""

    def __init__(self, parts: Iterable[Part]) -> None:
        self._parts = iter(parts)
        self._current = memoryview(b"")

    def take(self, size: int) -> Part:
        """The next `size` bytes: a view where they lie in one part, else a copy.

        Raises:
            Rejected: TRUNCATED where the payload ends before.
        """
        if size <= len(self._current):
            return self._cut(size)
        pieces: list[memoryview] = []
        missing = size
        while missing:
            if not self._current and not self._advance():
                raise Rejected(Reason.TRUNCATED, f"the payload ends {missing} bytes too early")
            piece = self._cut(min(missing, len(self._current)))
            pieces.append(piece)
            missing -= len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def finish(self) -> None:
        """Raise Rejected(CORRUPT_PAYLOAD) unless every byte has been taken."""
        if self._current or self._advance():
            raise Rejected(Reason.CORRUPT_PAYLOAD, "bytes follow the last frame")

    def _cut(self, size: int) -> memoryview:
        piece, self._current = self._current[:size], self._current[size:]
        return piece

    def _advance(self) -> bool:
        for part in self._parts:
            self._current = memoryview(part).cast("B")
            if self._current:
                return True
        return False


def frame_bound(size: int) -> int:
    """An upper bound of the zstd frame of a `size`-byte body that `compress` writes.

    zstd's own bound (ZSTD_compressBound), with room for the blocks that end early with their stream.
    """
    return size + (size >> 8) + 128


def compressor(level: int) -> zstandard.ZstdCompressor:
    """A zstd compressor of `level` (1 to 22); level 1 is tuned to shuffled numbers. For one thread at a time."""
    if level != 1:
        return zstandard.ZstdCompressor(level=level)
    # Chance matches of a few bytes cost time, and room that Huffman codes would save. So only long ones are taken, from
    # a table just large enough for runs. Measured against presets 1, 3 and 9 on 20-step deltas of a small transformer
    # (AdamW, SGD): float streams get smaller, at up to twice the speed of preset 1; int8 and int4 stay within 0.1 %.
    tuned = zstandard.ZstdCompressionParameters.from_level(1, hash_log=8, min_match=7)
    return zstandard.ZstdCompressor(compression_params=tuned)


def compress(zstd: zstandard.ZstdCompressor, streams: Sequence[Tensor]) -> bytes:
    """The streams as one zstd frame that names its content size, behind the frame's length."""
    output = zstd.compressobj(size=sum(stream.numel() for stream in streams))
    pieces = []
    for stream in streams:
        pieces.append(output.compress(stream.numpy().data))
        # A block of its own lets each stream have its own Huffman table.
        pieces.append(output.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
    pieces.append(output.flush())
    return b"".join((LENGTH.pack(sum(map(len, pieces))), *pieces))


def read_frame(
    reader: PartReader, zstd: zstandard.ZstdDecompressor, least: int, most: int, workspace: Workspace
) -> Tensor:
    """The body (1-D uint8) of the next frame, which must have `least` to `most` bytes.

    Raises:
        Rejected: TRUNCATED where the payload ends within the frame; DECOMPRESSION_BOMB where its length or its header
            claim more than `most` implies; CORRUPT_PAYLOAD for anything else that zstd or the format object to.
    """
    return decompress(take_frame(reader, most), zstd, least, most, workspace.take("slice", most, torch.uint8))


def take_frame(reader: PartReader, most: int) -> Part:
    """The next zstd frame, of a body of at most `most` bytes. Raises as `read_frame`."""
    (length,) = LENGTH.unpack(reader.take(LENGTH.size))
    if length > frame_bound(most):
        raise Rejected(Reason.DECOMPRESSION_BOMB, f"a frame of {length} bytes for a body of at most {most}")
    return reader.take(length)


def decompress(frame: Part, zstd: zstandard.ZstdDecompressor, least: int, most: int, buffer: Tensor) -> Tensor:
    """The body of a zstd frame: the beginning of `buffer` (1-D uint8, of `most`). Raises as `read_frame`."""
    try:
        header = zstandard.get_frame_parameters(frame)
        _check(header, least, most)
        _check_end(frame, header)
        body = buffer[: header.content_size]
        size = zstd.stream_reader(frame).readinto(body.numpy().data)
    except zstandard.ZstdError as error:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"zstd: {error}") from None
    if size != header.content_size:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"zstd: {size} bytes where {header.content_size} are claimed")
    return body


def _check_end(frame: Part, header: zstandard.FrameParameters) -> None:
    """Raise unless the frame's blocks (RFC 8878, section 3.1.1.2) end where the frame's length says."""
    at, last = zstandard.frame_header_size(frame), False
    while not last:
        if at + _BLOCK_HEADER > len(frame):
            raise Rejected(Reason.CORRUPT_PAYLOAD, "a zstd frame ends within its blocks")
        block = int.from_bytes(frame[at : at + _BLOCK_HEADER], "little")
        last = bool(block & 1)
        # A block of one byte that is repeated names its length after repeating.
        at += _BLOCK_HEADER + (1 if block >> 1 & 3 == _REPEATED else block >> 3)
    at += _CHECKSUM if header.has_checksum else 0
    if at != len(frame):
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"a frame of {len(frame)} bytes whose blocks end at {at}")


def _check(header: zstandard.FrameParameters, least: int, most: int) -> None:
    if header.content_size == _UNKNOWN_SIZE:
        raise Rejected(Reason.CORRUPT_PAYLOAD, "a zstd frame does not name its content size")
    if header.content_size > most or header.window_size > max(2 * most, _LEAST_WINDOW):
        detail = f"a zstd frame claims {header.content_size} bytes (window {header.window_size}), at most {most} fit"
        raise Rejected(Reason.DECOMPRESSION_BOMB, detail)
    if header.content_size < least:
        raise Rejected(Reason.CORRUPT_PAYLOAD, f"a body of {header.content_size} bytes, at least {least} are needed")

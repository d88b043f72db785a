"""A message cut into records. A record's value is a chunk: a header and bytes of the message.

The header is one msgpack array of four items, always written at full width, so that it is 32 bytes:

    bytes      item
    0          94: array of four
    1 to 3     A2 "LC"
    4 to 21    C4 10 and 16 bytes: the message id, a bin 8
    22 to 26   CE and a big-endian uint32: index of this chunk, from 0
    27 to 31   CE and a big-endian uint32: count of chunks, the same in all of one message

All chunks of a message go to one partition, in order. Each carries at least one byte. The sender
chooses where to cut; a reader assumes no size.
"""

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from llmos_stream.types import Part
from llmos_stream.wire.fields import malformed

MESSAGE_ID_BYTES = 16
MAX_CHUNKS = 2**32 - 1

_TAG = b"\x94\xa2LC\xc4\x10"
_HEADER = struct.Struct(">6s16sBIBI")
_UINT32 = 0xCE
CHUNK_OVERHEAD = _HEADER.size
"""What the value of a record is longer than its part of the message."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A record's value, taken apart. `body` is a view of the value."""

    message_id: bytes
    index: int
    count: int
    body: memoryview


def message_id(sender: str, identity: int, attempt: int = 0) -> bytes:
    """The 16-byte id of one sending of one message: BLAKE2b over who sends, what and which attempt.

    `identity` is what tells the sender's messages apart: the sequence of an update, the number of a
    version. The same arguments give the same id in any process.
    """
    # The numbers come first, so that no sender's name can run into them.
    return hashlib.blake2b(f"{identity} {attempt} {sender}".encode(), digest_size=MESSAGE_ID_BYTES).digest()


def split(
    prelude: bytes, parts: Iterable[Part], payload_size: int, message_id: bytes, chunk_bytes: int
) -> Iterator[bytes]:
    """Cut a message into the values of its records, each with `chunk_bytes` of the message but the last.

    Parts are taken one after the other and copied once, into the value.

    Raises:
        ValueError: The arguments make no message; or, before the last value is drawn, the parts do not add up to
            `payload_size`, so that no reader ever sees such a message as complete.
    """
    total = len(prelude) + payload_size
    if not prelude or payload_size < 0 or len(message_id) != MESSAGE_ID_BYTES or chunk_bytes < 1:
        raise ValueError("split needs a prelude, a payload size of 0 or more, an id of 16 bytes and a chunk size")
    count = -(-total // chunk_bytes)
    if count > MAX_CHUNKS:
        raise ValueError(f"{total} bytes in chunks of {chunk_bytes} make {count} chunks; the limit is {MAX_CHUNKS}")
    headers = (_header(message_id, index, count) for index in range(count))
    return _records(headers, _views(prelude, parts), total, chunk_bytes)


def read_chunk(value: Part) -> Chunk:
    """Take a record's value apart without copying.

    Raises:
        Rejected: MALFORMED for what is no chunk.
    """
    if len(value) <= CHUNK_OVERHEAD:
        raise malformed(f"a record of {len(value)} bytes is no chunk")
    tag, identifier, mark, index, count_mark, count = _HEADER.unpack_from(value)
    if tag != _TAG or mark != _UINT32 or count_mark != _UINT32:
        raise malformed("not a chunk: the record does not start with a chunk's header")
    if index >= count:
        raise malformed(f"chunk {index} of {count}: an index is below the count")
    return Chunk(identifier, index, count, memoryview(value)[CHUNK_OVERHEAD:])


def _records(headers: Iterator[bytes], views: Iterator[memoryview], total: int, chunk_bytes: int) -> Iterator[bytes]:
    left, room = total, chunk_bytes
    pieces: list[Part] = [next(headers)]
    for view in views:
        if view.nbytes > left:
            raise ValueError(f"the parts have more bytes than a message of {total} has left")
        start = 0
        while start < view.nbytes:
            piece = view[start : start + room]
            pieces.append(piece)
            start += piece.nbytes
            left -= piece.nbytes
            room -= piece.nbytes
            if room == 0 and left > 0:
                yield b"".join(pieces)
                room = chunk_bytes
                pieces = [next(headers)]
    if left:
        raise ValueError(f"the parts end {left} bytes before the message of {total} does")
    yield b"".join(pieces)


def _views(prelude: bytes, parts: Iterable[Part]) -> Iterator[memoryview]:
    yield memoryview(prelude)
    for part in parts:
        view = memoryview(part)
        if view.nbytes:  # an empty view cannot be cast
            yield view.cast("B")


def _header(message_id: bytes, index: int, count: int) -> bytes:
    return _HEADER.pack(_TAG, message_id, _UINT32, index, _UINT32, count)

"""The frame of a message: `prelude ++ payload`. This page is its specification.

The prelude is one msgpack array of five items. Its opening has a fixed width, so that a reader
knows after 14 bytes how long the head is and needs to parse nothing before it is all there.

    bytes      item
    0          95: array of five
    1 to 6     A5 "LLMOS": the name of the protocol
    7          01: format version, a positive fixint
    8          kind, a positive fixint: 01 update, 02 version, 03 snapshot, 04 local model
    9 to 13    C6 and a big-endian uint32: the head, always a bin 32, and its size in bytes
    14 ...     the head: one msgpack map
    then       C0: no signature; or C5, a big-endian uint16 from 1 to 1024, and that many bytes

The payload is the raw bytes that follow; the head names its size and its SHA-256. The whole
prelude is at most 768 KiB. Bytes 0 to 7 keep their meaning in every later format version.

A signature covers every byte of the prelude before its own item: the opening and the head, and
through the head's digest the payload. Format version 1 defines no scheme: writers write C0. A
signature that is there is carried as opaque bytes and shown to people; nothing verifies it.

Keys of the head are short strings. Unknown keys are ignored, whatever their value; a key twice is
malformed; the meaning of a key never changes, and a key added later is optional. `int` is a msgpack
integer within 64 signed bits (a bool is none), `digest` a bin of 32 bytes, `name` a printable string
of 1 to 64 characters. Fields marked * may be left out.

    all kinds
    layout     digest     digest of the layout; in an update with a range, of the tensors in that range alone
    codec      int >= 0   codec id
    params *   map        codec parameters: at most 16, name to int or float
    size       int >= 0   bytes of the payload
    digest     digest     SHA-256 of the payload as it is on the wire

    update
    client     string     client id: [A-Za-z0-9][A-Za-z0-9._-]{0,127}
    seq        int >= 0   sequence, per client
    base       int >= 0   version the delta starts from
    n          int        examples it was trained on (the core judges the number)
    metrics *  map        at most 64, name to float, finite or not
    range *    array      [begin, end): elements of the flat vector that the payload holds, where those are not
                          all (see `aggregation.fragments`). A release that does not know this key refuses the
                          update, since its layout is not the model's

    version
    number     int >= 0
    parent *   int or nil version before this one, below `number`; a delta must have one
    kind       string     "full", "delta", or "fragment": a delta on one range of the parent, which releases that
                          know the others alone refuse
    weights    digest     SHA-256 over the resulting float32 weights, little endian, layout order
    time       int >= 0   server time, milliseconds since the epoch, up to the year 9999
    manifest * array      one array for each contribution, in folding order:
                          [client, seq, partition, offset, n, staleness, weight, clip, digest],
                          and the number of local steps as a tenth item where the strategy counts them
    tensors *  array      one array for each tensor, in layout order: [name, [dimensions], dtype],
                          and "buffer" as a fourth item where it is one: buffers come last, and their
                          values end the payloads of updates and delta versions (see `codec.payload`);
                          a full version must have it; a tensor's name may have 512 characters
    tied *     array      beside `tensors`, where the model has a tensor under more than one name: one array for
                          each further name, [further name, name in `tensors`]
    before *   digest     SHA-256 over what a signature of the parent covers; zeros where there is no parent
    range *    array      [begin, end): elements of the flat vector that moved, where those are not all: a fragment
                          must have it, a delta must not; the payload of a fragment holds these alone
    rule *     map        aggregation settings: what JSON can say, at most 8 levels
    build *    map        strings to strings: what computed this version

    snapshot
    version    int >= 0   the version whose aggregator's state this is
    tensor     name       which vector of it: "momentum", "first_moment", ...

    local model           its payload is all shared weights, as a full version's; in codec 1, 2 or 3
    client     string     client id: whose it is, who has trained it on its own data alone
    version    int >= 0   the newest version that the client had
    since      int >= 0   the version that the model began with, not above `version`

The arrays in `manifest`, `tensors` and `tied` may have items after those named here, which are ignored.
Every other array and map has at most 64 entries, and a string at most 4096 bytes.
"""

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum, unique

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Head, LocalModelHead, Part, SnapshotHead, UpdateHead, VersionHead
from llmos_stream.wire.fields import malformed
from llmos_stream.wire.head import pack_head, unpack_head

FORMAT_VERSION = 1
MAX_PRELUDE_BYTES = 768 * 1024
MAX_SIGNATURE_BYTES = 1024

_MAGIC = b"\x95\xa5LLMOS"
_OPENING = struct.Struct(">7sBBBI")
OPENING_BYTES = _OPENING.size
_NIL, _BIN16, _BIN32 = 0xC0, 0xC5, 0xC6


@unique
class FrameKind(IntEnum):
    """Wire ids of the kinds of message. Closed: an id is never reused for another meaning."""

    UPDATE = 1
    VERSION = 2
    SNAPSHOT = 3
    LOCAL_MODEL = 4


_HEADS: dict[int, type[Head]] = {
    FrameKind.UPDATE: UpdateHead,
    FrameKind.VERSION: VersionHead,
    FrameKind.SNAPSHOT: SnapshotHead,
    FrameKind.LOCAL_MODEL: LocalModelHead,
}


@dataclass(slots=True)
class Prelude:
    """What stands before a payload. `size` is its bytes, so the payload starts there.

    `signature` covers `signed`, the opening and the head: a view of what was read, empty once it was let go.
    """

    kind: FrameKind
    signed: memoryview
    signature: bytes | None
    size: int
    key: bytes | None = None
    """That of the message's first record."""
    parsed: Head | None = None
    """The head, once somebody has asked for it."""
    digest: bytes = b""
    """SHA-256 of `signed`, once that was let go."""

    @property
    def head(self) -> Head:
        """The head, parsed when it is asked for first. Raises Rejected: MALFORMED."""
        if self.parsed is None:
            self.parsed = unpack_head(_HEADS[self.kind], self.signed[OPENING_BYTES:])
        return self.parsed

    def let_go(self) -> None:
        """Keep what was parsed and the digest of the bytes that it was read from, and no longer the bytes."""
        self.digest = hashlib.sha256(self.signed).digest()
        self.signed = memoryview(b"")


def head_digest(head: Head) -> bytes:
    """The digest of a prelude with this head (see `Prelude.digest`)."""
    return hashlib.sha256(memoryview(pack_prelude(head))[:-1]).digest()


def pack_prelude(head: Head, signature: bytes | None = None) -> bytes:
    """The bytes that go before the payload.

    Raises:
        ValueError: A reader would refuse them. So every head that was packed can be read.
    """
    if signature is not None and not 1 <= len(signature) <= MAX_SIGNATURE_BYTES:
        raise ValueError(f"a signature has 1 to {MAX_SIGNATURE_BYTES} bytes, not {len(signature)}")
    try:
        packed = pack_head(head)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"msgpack cannot say this head: {error}") from error
    kind = next(kind for kind, of in _HEADS.items() if of is type(head))
    last = bytes([_NIL]) if signature is None else struct.pack(">BH", _BIN16, len(signature)) + signature
    prelude = b"".join((_OPENING.pack(_MAGIC, FORMAT_VERSION, kind, _BIN32, len(packed)), packed, last))
    try:
        unpack_prelude(prelude)
    except Rejected as error:
        raise ValueError(f"no reader takes this head: {error.detail}") from error
    return prelude


def unpack_prelude(data: Part) -> Prelude | None:
    """As `read_prelude`, and parse its head."""
    prelude = read_prelude(data)
    if prelude is not None:
        _ = prelude.head
        prelude.let_go()
    return prelude


def read_prelude(data: Part) -> Prelude | None:
    """Find the prelude that `data` starts with; None where more bytes are needed (see `prelude_needs`).

    Neither the head nor what follows the prelude is looked at.

    Raises:
        Rejected: MALFORMED; UNSUPPORTED for a newer format version or an unknown kind; TOO_LARGE for a prelude above
            MAX_PRELUDE_BYTES.
    """
    size = prelude_needs(data)
    if len(data) < size:
        return None
    view = memoryview(data)
    _, _, kind, _, head_size = _OPENING.unpack_from(view)
    end = OPENING_BYTES + head_size
    signature = None if view[end] == _NIL else bytes(view[end + 3 : size])
    return Prelude(FrameKind(kind), view[:end], signature, size)


def prelude_needs(data: Part) -> int:
    """Bytes that must be there before the prelude `data` starts with can be read, as far as is known.

    The answer grows at most three times while bytes arrive and is the exact size once that many
    are there. Costs the same whatever the size.

    Raises:
        Rejected: As `read_prelude`, as soon as the opening or the signature's item is wrong.
    """
    if len(data) < OPENING_BYTES:
        if data[: len(_MAGIC)] != _MAGIC[: len(data)]:
            raise malformed("not a frame: it does not start with the protocol's name")
        return OPENING_BYTES
    magic, version, kind, mark, head_size = _OPENING.unpack_from(data)
    if magic != _MAGIC:
        raise malformed("not a frame: it does not start with the protocol's name")
    if version != FORMAT_VERSION:
        raise Rejected(Reason.UNSUPPORTED, f"format version {version}; this release reads {FORMAT_VERSION}")
    if kind not in _HEADS:
        raise Rejected(Reason.UNSUPPORTED, f"kind {kind} of message is unknown to this release")
    if mark != _BIN32:
        raise malformed("the head is not a bin 32")
    end: int = OPENING_BYTES + head_size
    if end + 1 > MAX_PRELUDE_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"a prelude of {end + 1} bytes or more; the limit is {MAX_PRELUDE_BYTES}")
    return end + _signature_needs(data[end : end + 3])


def _signature_needs(item: Part) -> int:
    """Bytes of the signature's item, as far as its first three say."""
    if len(item) == 0 or item[0] == _NIL:
        return 1
    if item[0] != _BIN16:
        raise malformed("the signature is neither nil nor a bin 16")
    if len(item) < 3:
        return 3
    size = int.from_bytes(item[1:3], "big")
    if not 1 <= size <= MAX_SIGNATURE_BYTES:
        raise malformed(f"a signature of {size} bytes, not 1 to {MAX_SIGNATURE_BYTES}")
    return 3 + size


def payload_digest(parts: Iterable[Part]) -> bytes:
    """SHA-256 over the parts as if they were joined."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.digest()

"""The aggregator's own vectors in `<f>.snapshots`, one message each.

They are the server optimiser's moments, and the residual that a delta version leaves (see `codec.version_delta`).
"""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout, Residual, decode, encode, max_payload_size
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, Reason, Rejected
from llmos_stream.log.admission import head_of, topic_assembler
from llmos_stream.log.federation import Federation
from llmos_stream.log.stream import MessageStream
from llmos_stream.storage.spool import Spooled, spooled
from llmos_stream.types import CodecId, CodecSpec, SnapshotHead
from llmos_stream.wire import Assembler, MemoryStore, Message, Parts, Prelude, Refusal, Store, payload_digest

RESIDUAL = "residual"
_CODEC = CodecSpec(CodecId.FLOAT32)

EncodedSnapshot = tuple[SnapshotHead, Parts]


def encode_snapshot(version: int, name: str, tensor: Tensor, layout: Layout, store: Store) -> EncodedSnapshot:
    """The message of one flat vector of the state at `version`, its payload kept in `store`. Lossless."""
    return _message(version, name, _CODEC, spooled(encode(tensor, _CODEC), store), layout)


def residual_message(version: int, residual: Residual, layout: Layout) -> EncodedSnapshot:
    """The message of what readers are owed after `version`."""
    return _message(version, RESIDUAL, residual.codec, spooled(map(bytes, residual.parts), MemoryStore()), layout)


def _message(version: int, name: str, codec: CodecSpec, payload: Spooled, layout: Layout) -> EncodedSnapshot:
    return SnapshotHead(version, name, layout.digest, codec, payload.size, payload.digest), payload.parts


def decode_snapshot(message: Message, layout: Layout) -> Tensor:
    """The flat vector, as long as the parameters. Raises Rejected for anything that its digest does not confirm."""
    head = _checked(message, layout)
    return decode(message.parts, head.codec, layout.parameters)


def decode_residual(message: Message, layout: Layout) -> Residual:
    """What readers are owed, as it was encoded, after a look whether it can be decoded. Raises Rejected."""
    head = _checked(message, layout)
    decode(message.parts, head.codec, layout.parameters)
    return Residual(head.codec, list(message.parts))


def _checked(message: Message, layout: Layout) -> SnapshotHead:
    head = message.head
    if not isinstance(head, SnapshotHead) or head.layout_digest != layout.digest:
        raise Rejected(Reason.WRONG_LAYOUT, "not a snapshot of this model's aggregator")
    if payload_digest(message.parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"snapshot {head.tensor} of version {head.version} does not match")
    return head


def snapshot_assembler(layout: Layout, wire: WireSettings) -> Assembler:
    """Collects snapshots of this model and refuses everything else before it is collected."""

    def admit(prelude: Prelude) -> None:
        head = head_of(SnapshotHead, prelude)
        limit = max_payload_size(head.codec, layout.parameters)
        if head.layout_digest != layout.digest or head.payload_size > limit:
            raise Rejected(Reason.TOO_LARGE, "a snapshot of another model")

    return topic_assembler(admit, wire)


class Kept(NamedTuple):
    """What was remembered with a version: the moments by name, and what readers are owed."""

    moments: Mapping[str, Tensor]
    residual: Residual | None


async def fetch_snapshots(
    federation: Federation, reader: Reader, offsets: Mapping[str, int], version: int, layout: Layout, seconds: float
) -> Kept:
    """The vectors of `version` that begin at `offsets`.

    Raises OffsetGone when retention has deleted one, Rejected when one is not what it should be,
    BrokerUnavailable when nothing of one came for so many seconds.
    """
    moments: dict[str, Tensor] = {}
    residual: Residual | None = None
    at = TopicPartition(*reader.partitions[0])
    for name, offset in offsets.items():
        message = await _message_at(reader, at, offset, snapshot_assembler(layout, federation.wire), seconds)
        head = message.head
        if not isinstance(head, SnapshotHead) or (head.version, head.tensor) != (version, name):
            raise Rejected(Reason.MALFORMED, f"no {name} of version {version} at offset {offset} of {at.topic}")
        if name == RESIDUAL:
            residual = await federation.run(decode_residual, message, layout)
        else:
            moments[name] = await federation.run(decode_snapshot, message, layout)
    return Kept(moments, residual)


async def _message_at(
    reader: Reader, at: TopicPartition, offset: int, assembler: Assembler, timeout_seconds: float
) -> Message:
    """The message that begins at `offset`. Raises as `fetch_snapshots` does."""

    def refused(refusal: Refusal) -> None:
        raise Rejected(refusal.reason, f"{at.topic} at offset {offset}: {refusal.detail}")

    stream = MessageStream(reader, assembler, on_refusal=refused)
    # A seek throws away what has been fetched ahead.
    if await reader.position(at) != offset:
        reader.seek(at, offset)
    if (message := await stream.awaited(at, timeout_seconds)) is not None:
        return message
    raise BrokerUnavailable(f"the message at offset {offset} of {at.topic} did not arrive within {timeout_seconds:g} s")

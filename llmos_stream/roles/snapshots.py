"""The aggregator's own vectors (the server optimiser's moments) in `<f>.snapshots`: one message each."""

from collections.abc import Mapping

from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout, decode, encode, max_payload_size, payload_digest
from llmos_stream.config import WireSettings
from llmos_stream.errors import Reason, Rejected
from llmos_stream.roles.messages import fetch_message
from llmos_stream.runtime import Offload
from llmos_stream.types import CodecId, CodecSpec, Head, SnapshotHead
from llmos_stream.wire import Assembler, Message

_CODEC = CodecSpec(CodecId.FLOAT32)

EncodedSnapshot = tuple[SnapshotHead, list[bytes]]


def encode_snapshot(version: int, name: str, tensor: Tensor, layout: Layout) -> EncodedSnapshot:
    """The message of one flat vector of the state at `version`. Lossless."""
    parts = list(encode(tensor, _CODEC))
    return SnapshotHead(version, name, layout.digest, _CODEC, sum(map(len, parts)), payload_digest(parts)), parts


def decode_snapshot(message: Message, layout: Layout) -> Tensor:
    """The flat vector. Raises Rejected for anything that its digest does not confirm."""
    head = message.head
    if not isinstance(head, SnapshotHead) or head.layout_digest != layout.digest:
        raise Rejected(Reason.WRONG_LAYOUT, "not a snapshot of this model's aggregator")
    if payload_digest(message.parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"snapshot {head.tensor} of version {head.version} does not match")
    return decode(message.parts, head.codec, layout.numel)


def snapshot_assembler(layout: Layout, wire: WireSettings) -> Assembler:
    """Collects snapshots of this model and refuses everything else before it is collected."""

    def admit(head: Head) -> None:
        if not isinstance(head, SnapshotHead):
            raise Rejected(Reason.UNSUPPORTED, "this topic carries snapshots")
        limit = max_payload_size(head.codec, layout.numel)
        if head.layout_digest != layout.digest or head.payload_size > limit:
            raise Rejected(Reason.TOO_LARGE, "a snapshot of another model")

    return Assembler(admit, max_pending_bytes=wire.pending_bytes, max_idle_seconds=wire.incomplete_seconds)


async def fetch_snapshots(
    reader: Reader,
    offsets: Mapping[str, int],
    version: int,
    layout: Layout,
    *,
    wire: WireSettings,
    offload: Offload,
    timeout_seconds: float,
) -> dict[str, Tensor]:
    """The vectors of `version` that begin at `offsets`, by name.

    Raises OffsetGone when retention has deleted one, Rejected when one is not what it should be,
    BrokerUnavailable past the time-out.
    """
    found = {}
    at = reader.partitions[0]
    for name, offset in offsets.items():
        message = await fetch_message(
            reader, TopicPartition(*at), offset, snapshot_assembler(layout, wire), timeout_seconds
        )
        head = message.head
        if not isinstance(head, SnapshotHead) or (head.version, head.tensor) != (version, name):
            raise Rejected(Reason.MALFORMED, f"no {name} of version {version} at offset {offset} of {at.topic}")
        found[name] = await offload.run(decode_snapshot, message, layout)
    return found

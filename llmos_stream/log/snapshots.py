"""The aggregator's own vectors in `<f>.snapshots`, one message each.

They are the server optimiser's moments, and the residuals that delta versions leave (see `codec.version_delta`):
`residual` of a model that moves as a whole, `residual.BEGIN-END` of each fragment that moved since the last full
version, with each version anew, so that retention never has to keep what an older one has written.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout, Residual, add_residual, decode, encode, max_payload_size
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, Reason, Rejected
from llmos_stream.log.admission import head_of, topic_assembler
from llmos_stream.log.federation import Federation
from llmos_stream.log.stream import MessageStream
from llmos_stream.storage.spool import Spooled, spooled
from llmos_stream.types import CodecId, CodecSpec, SnapshotHead
from llmos_stream.wire import Assembler, MemoryStore, Message, Parts, Prelude, Refusal, Store, payload_digest

_RESIDUAL = re.compile(r"residual(?:\.(\d{1,18})-(\d{1,18}))?")
_CODEC = CodecSpec(CodecId.FLOAT32)

EncodedSnapshot = tuple[SnapshotHead, Parts]
Owed = Mapping[tuple[int, int] | None, Residual]
"""What readers are owed: the residual of each range that a version since the last full one has moved; None: of all."""


def pay(weights: Tensor, layout: Layout, owed: Owed) -> None:
    """Add to `weights` (flat, in place) all that readers are owed, as a full version does.

    Raises:
        Rejected: A residual is damaged.
    """
    for elements, residual in owed.items():
        add_residual(layout.moving(weights, elements)[0], residual)


def residual_name(elements: tuple[int, int] | None) -> str:
    """Under which name the residual of a range is kept; None: that of the whole model."""
    return "residual" if elements is None else "residual.{}-{}".format(*elements)


def is_residual(name: str) -> bool:
    """Whether a snapshot of this name is a residual; else it is a moment."""
    return _RESIDUAL.fullmatch(name) is not None


def encode_snapshot(version: int, name: str, tensor: Tensor, layout: Layout, store: Store) -> EncodedSnapshot:
    """The message of one flat vector of the state at `version`, its payload kept in `store`. Lossless."""
    return _message(version, name, _CODEC, spooled(encode(tensor, _CODEC), store), layout)


def residual_messages(version: int, owed: Owed, layout: Layout) -> Sequence[EncodedSnapshot]:
    """The messages of what readers are owed after `version`."""
    return [
        _message(version, residual_name(elements), its.codec, spooled(map(bytes, its.parts), MemoryStore()), layout)
        for elements, its in owed.items()
    ]


def _message(version: int, name: str, codec: CodecSpec, payload: Spooled, layout: Layout) -> EncodedSnapshot:
    return SnapshotHead(version, name, layout.digest, codec, payload.size, payload.digest), payload.parts


def _decoded(message: Message, head: SnapshotHead, layout: Layout) -> Tensor:
    """The flat vector, as long as the parameters that it is of.

    Raises Rejected for anything that its digest does not confirm.
    """
    if payload_digest(message.parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"snapshot {head.tensor} of version {head.version} does not match")
    begin, end = _elements_of(head.tensor) or (0, layout.parameters)
    end = min(end, layout.parameters)
    if begin >= end:
        raise Rejected(Reason.MALFORMED, f"snapshot {head.tensor} is of no parameters of this model")
    return decode(message.parts, head.codec, end - begin)


def _elements_of(name: str) -> tuple[int, int] | None:
    found = _RESIDUAL.fullmatch(name)
    return None if found is None or found[1] is None else (int(found[1]), int(found[2]))


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
    owed: Owed


async def fetch_snapshots(
    federation: Federation, reader: Reader, offsets: Mapping[str, int], version: int, layout: Layout, seconds: float
) -> Kept:
    """The vectors of `version` that begin at `offsets`.

    Raises OffsetGone when retention has deleted one, Rejected when one is not what it should be,
    BrokerUnavailable when nothing of one came for so many seconds.
    """
    moments: dict[str, Tensor] = {}
    owed: dict[tuple[int, int] | None, Residual] = {}
    at = TopicPartition(*reader.partitions[0])

    def refused(refusal: Refusal) -> None:
        raise Rejected(refusal.reason, f"{at.topic} at offset {refusal.offset}: {refusal.detail}")

    stream = MessageStream(reader, snapshot_assembler(layout, federation.wire), on_refusal=refused)
    for name, offset in offsets.items():
        # A seek throws away what has been fetched ahead.
        if await stream.position(at) != offset:
            stream.seek(at, offset)
        if (message := await stream.awaited(at, seconds)) is None:
            raise BrokerUnavailable(f"the message at offset {offset} of {at.topic} did not arrive within {seconds:g} s")
        head = head_of(SnapshotHead, message)
        if (head.version, head.tensor) != (version, name):
            raise Rejected(Reason.MALFORMED, f"no {name} of version {version} at offset {offset} of {at.topic}")
        vector = await federation.run(_decoded, message, head, layout)
        if is_residual(name):  # what is owed stays as it was encoded, now that it can be decoded
            owed[_elements_of(name)] = Residual(head.codec, await federation.run(list, message.parts))
        else:
            moments[name] = vector
    return Kept(moments, owed)

"""What a topic of messages lets in: heads of one kind, whose payloads are no larger than the model needs."""

from typing import TypeVar

from llmos_stream.codec import max_payload_size
from llmos_stream.config import WireSettings
from llmos_stream.errors import Reason, Rejected
from llmos_stream.storage.spool import Spools
from llmos_stream.types import Head, LocalModelHead, SnapshotHead, UpdateHead, VersionHead
from llmos_stream.wire import Admit, Assembler, Message, Prelude

H = TypeVar("H", UpdateHead, VersionHead, SnapshotHead, LocalModelHead)

_CARRIED: dict[type[Head], str] = {
    UpdateHead: "updates",
    VersionHead: "versions",
    SnapshotHead: "snapshots",
    LocalModelHead: "local models",
}


def head_of(kind: type[H], found: Message | Prelude) -> H:
    """The head, which must be of this kind. Raises Rejected(UNSUPPORTED)."""
    head = found.head
    if not isinstance(head, kind):
        raise Rejected(Reason.UNSUPPORTED, f"this topic carries {_CARRIED[kind]}")
    return head


def check_payload_size(head: Head, numel: int, buffers: int = 0) -> None:
    """Raise Rejected(TOO_LARGE) for a payload that claims more than so many elements and `buffers` more can need."""
    limit = max_payload_size(head.codec, numel, buffers)
    if head.payload_size > limit:
        raise Rejected(Reason.TOO_LARGE, f"payload of {head.payload_size} bytes, at most {limit} needed")


def topic_assembler(admit: Admit, wire: WireSettings, *, hashes: bool = False) -> Assembler:
    """Collects what `admit` lets in, in as much memory and disk as the settings give it."""
    return Assembler(
        admit,
        max_pending_bytes=wire.pending_bytes,
        max_idle_seconds=wire.incomplete_seconds,
        max_seconds=wire.message_seconds,
        max_key_bytes=wire.client_bytes or wire.pending_bytes // 2,
        store=Spools(wire.memory_bytes, wire.spool_dir).new,
        hashes=hashes,
    )

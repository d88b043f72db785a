"""Updates written by hand: as a client would write them, or not quite."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from llmos_stream.codec import Layout
from llmos_stream.types import CodecId, CodecSpec, UpdateHead
from llmos_stream.wire import message_id, pack_prelude, payload_digest, split

FLOAT32 = CodecSpec(CodecId.FLOAT32)


def update_head(layout: Layout, payload: Sequence[bytes], **changes: Any) -> UpdateHead:
    """The head of client `a`'s first update, from 10 examples on version 0, with `changes` to its fields."""
    head = UpdateHead(
        client_id="a",
        sequence=0,
        base_version=0,
        num_examples=10,
        layout_digest=layout.digest,
        codec=FLOAT32,
        payload_size=sum(map(len, payload)),
        payload_digest=payload_digest(payload),
    )
    return replace(head, **changes)


def update_records(head: UpdateHead, payload: Sequence[bytes], chunk_bytes: int = 1 << 16) -> list[bytes]:
    """The records of an update, whatever its head claims about the payload."""
    return list(
        split(
            pack_prelude(head),
            payload,
            payload_size=sum(map(len, payload)),
            message_id=message_id(head.client_id, head.sequence),
            chunk_bytes=chunk_bytes,
        )
    )

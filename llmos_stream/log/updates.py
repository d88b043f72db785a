"""Updates between messages and what can be folded."""

from torch import Tensor

from llmos_stream.codec import decode
from llmos_stream.core import Update
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import UpdateHead
from llmos_stream.wire import Message


def decode_update(message: Message, numel: int, room: Tensor | None = None) -> Update:
    """Verify the payload's digest and decode it whole, into `room` where given. Raises Rejected."""
    head = update_head(message)
    if message.payload_digest != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
    delta = decode(message.parts, head.codec, numel, out=room)
    return Update(head=head, partition=message.partition, offset=message.first_offset, delta=delta)


def update_head(message: Message) -> UpdateHead:
    if not isinstance(message.head, UpdateHead):
        raise Rejected(Reason.UNSUPPORTED, "this topic carries updates")
    return message.head

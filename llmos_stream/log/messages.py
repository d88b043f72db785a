"""One message by the place where it begins."""

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.errors import BrokerUnavailable, Rejected
from llmos_stream.log.stream import MessageStream
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.wire import Assembler, Message, Refusal


async def fetch_message(
    reader: Reader,
    at: TopicPartition,
    offset: int,
    assembler: Assembler,
    timeout_seconds: float,
    clock: Clock = SYSTEM_CLOCK,
) -> Message:
    """Read the message that begins at `offset`.

    Raises:
        OffsetGone: retention has deleted it.
        Rejected: there is no such message.
        BrokerUnavailable: for `timeout_seconds` nothing came of it.
    """

    def refused(refusal: Refusal) -> None:
        raise Rejected(refusal.reason, f"{at.topic} at offset {offset}: {refusal.detail}")

    stream = MessageStream(reader, assembler, clock=clock, on_refusal=refused)
    # A seek throws away what has been fetched ahead.
    if await reader.position(at) != offset:
        reader.seek(at, offset)
    if (message := await stream.awaited(at, timeout_seconds)) is not None:
        return message
    raise BrokerUnavailable(f"the message at offset {offset} of {at.topic} did not arrive within {timeout_seconds:g} s")

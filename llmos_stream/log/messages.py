"""Ways through a topic: one message by the place where it begins, and on where retention has deleted."""

from time import monotonic

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.errors import BrokerUnavailable, Rejected
from llmos_stream.wire import Assembler, Message, Refusal


async def skip_deleted(reader: Reader) -> list[TopicPartition]:
    """After OffsetGone: go on with the oldest record left where the next one was deleted, elsewhere as before.

    Returns the partitions that lost something.
    """
    before = {at: await reader.position(at) for at in reader.partitions}
    await reader.seek_to_beginning()
    overtaken = []
    for at, position in before.items():
        if await reader.position(at) > position:
            overtaken.append(at)
        else:
            reader.seek(at, position)
    return overtaken


async def fetch_message(
    reader: Reader, at: TopicPartition, offset: int, assembler: Assembler, timeout_seconds: float
) -> Message:
    """Read the message that begins at `offset`.

    Raises OffsetGone when retention has deleted it, Rejected when there is no such message,
    BrokerUnavailable when for `timeout_seconds` nothing comes of it.
    """
    # A seek throws away what has been fetched ahead.
    if await reader.position(at) != offset:
        reader.seek(at, offset)
    deadline = monotonic() + timeout_seconds
    while (left := deadline - monotonic()) > 0:
        records = await reader.poll(left)
        if records:  # a slow link may take its time
            deadline = monotonic() + timeout_seconds
        for record in records:
            for outcome in assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            ):
                if isinstance(outcome, Refusal):
                    raise Rejected(outcome.reason, f"{at.topic} at offset {offset}: {outcome.detail}")
                return outcome
    raise BrokerUnavailable(f"the message at offset {offset} of {at.topic} did not arrive within {timeout_seconds:g} s")

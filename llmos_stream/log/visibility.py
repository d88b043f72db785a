"""Waiting for what a pointer names: a reader may see the pointer before it sees the log up to there."""

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.errors import BrokerUnavailable, Reason, Rejected
from llmos_stream.runtime import Clock
from llmos_stream.wire.control import Pointer

PROMPT_SECONDS = 10.0
"""How long after a pointer the log holds its version at the latest: that was written before, to brokers that may not
know yet that they lead no more."""
_LOOK_SECONDS = 0.1


async def await_visible(reader: Reader, pointer: Pointer, clock: Clock, begun: float, seconds: float) -> None:
    """Wait until `reader` sees the log of versions up to where one is. It has waited since `begun`.

    Kafka ends a transaction in each partition on its own, and readers see nothing of what comes after an open one.
    Only what is beyond all that has been written is not there.

    Raises:
        Rejected: It is beyond the end of the log.
        BrokerUnavailable: For `seconds` the transaction has not ended.
    """
    topic = reader.partitions[0].topic
    at, what = TopicPartition(topic, pointer.partition), f"version {pointer.version} of {topic}"
    while (await reader.end_offsets())[at] <= pointer.offset:
        waited = clock.monotonic() - begun
        if waited > seconds:
            raise BrokerUnavailable(f"{what} did not arrive in {seconds:g} s")
        if waited > PROMPT_SECONDS and (await reader.end_offsets(undecided=True))[at] <= pointer.offset:
            raise Rejected(Reason.MISSING_CHUNK, f"{what}, at offset {pointer.offset}, is beyond the end of the log")
        await clock.sleep(_LOOK_SECONDS)

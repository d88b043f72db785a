"""Where in the log a version begins, from the heads alone."""

from llmos_stream.broker import Broker, Topics
from llmos_stream.log import Pointer
from llmos_stream.log.scan import LoggedHead, read_heads
from llmos_stream.types import VersionHead, VersionKind


class Heads:
    """Knows of each version whose head it is shown, in the order of the log, what it stands on."""

    def __init__(self) -> None:
        self._full: Pointer | None = None

    def pointer(self, logged: LoggedHead[VersionHead]) -> Pointer | None:
        """Where to find its weights; None for a delta whose full version has not been shown."""
        at = Pointer(logged.head.number, logged.partition, logged.offset)
        if logged.head.kind is VersionKind.FULL:
            self._full = at
            return at
        return None if self._full is None else Pointer(at.version, at.partition, at.offset, self._full)


async def find_in_log(broker: Broker, federation: str, number: int | None) -> Pointer | None:
    """The version `number`, or the newest; None where the log does not hold it with all that it stands on.

    Raises TopicMissing.
    """
    heads, found = Heads(), None
    async with broker.reader([Topics(federation).models], start="earliest") as reader:
        async for logged in read_heads(reader, VersionHead):
            pointer = heads.pointer(logged)
            if number is None or logged.head.number == number:
                found = pointer
            if logged.head.number == number:
                break
    return found

"""A federation as the roles are given it."""

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.config import Settings, WireSettings
from llmos_stream.log.admission import head_of
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import Follower
from llmos_stream.log.stream import MessageStream
from llmos_stream.log.versions import Version, version_assembler
from llmos_stream.runtime import SYSTEM_CLOCK, Offload, Shutdown
from llmos_stream.types import Event, EventKind, Part, VersionHead


def federation_of(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown | None = None) -> Federation:
    """What `settings` name, on `broker`."""
    return Federation(broker, Topics(settings.federation.name), settings.wire, offload, shutdown or Shutdown())


def event(kind: EventKind, role: str, **data: object) -> Event:
    """What happened now."""
    return Event(kind, role, SYSTEM_CLOCK.time_ms(), data)


@dataclass(frozen=True, slots=True)
class LoggedVersion:
    """A version as it lies in the log, its payload not decoded."""

    head: VersionHead
    parts: Iterable[Part]
    partition: int
    offset: int
    digest: bytes


async def read_versions(reader: Reader, wire: WireSettings) -> AsyncIterator[LoggedVersion]:
    """Every version from the reader's position to the present end, in order.

    One whose beginning retention has deleted is passed over.
    """
    async for message in MessageStream(reader, version_assembler(wire)).to_end():
        at = message.partition, message.first_offset
        yield LoggedVersion(head_of(VersionHead, message), message.parts, *at, message.head_digest)


async def decoded_versions(reader: Reader, wire: WireSettings) -> AsyncIterator[Version]:
    """Every version from the reader's position to the present end. A version's weights are good until the next one.

    Deltas before the first full version are passed over. Raises Rejected for one that cannot be decoded.
    """
    follower = Follower()
    async for logged in read_versions(reader, wire):
        if (version := follower.take(logged.head, logged.parts, logged.digest)) is not None:
            yield version

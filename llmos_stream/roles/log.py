"""Reading what the log holds now, from the oldest record kept to the end."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from time import monotonic

from llmos_stream.broker import Reader
from llmos_stream.config import WireSettings
from llmos_stream.roles.versions import version_assembler, version_head
from llmos_stream.types import Part, VersionHead
from llmos_stream.wire import Message

_POLL_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class LoggedVersion:
    """A version as it lies in the log, its payload not decoded."""

    head: VersionHead
    parts: Sequence[Part]
    partition: int
    offset: int


async def read_versions(reader: Reader, wire: WireSettings) -> AsyncIterator[LoggedVersion]:
    """Every version from the reader's position to the present end, in order.

    One whose beginning retention has deleted is passed over.
    """
    assembler = version_assembler(wire)
    ends = await reader.end_offsets()
    while any([await reader.position(at) < end for at, end in ends.items()]):
        for record in await reader.poll(_POLL_SECONDS):
            for outcome in assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            ):
                if isinstance(outcome, Message):
                    yield LoggedVersion(version_head(outcome), outcome.parts, outcome.partition, outcome.first_offset)

"""A reader's end of the chain of versions: the weights of one version, brought up to the next ones.

A version costs its reader its own message alone while the reader follows; whoever comes late, or has
lost its place, reads the newest full version and the deltas since.
"""

from collections import deque
from collections.abc import AsyncIterator, Iterable
from time import monotonic

from llmos_stream.broker import Reader, Record, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, Reason, Rejected
from llmos_stream.log.record_tracing import Trail, version_attributes
from llmos_stream.log.scan import read_versions
from llmos_stream.log.versions import Version, apply_version, decode_version, version_assembler, version_head
from llmos_stream.runtime import Offload
from llmos_stream.telemetry.tracing import TraceParent, follow
from llmos_stream.types import Part, VersionHead, VersionKind
from llmos_stream.wire import Message, Refusal
from llmos_stream.wire.control import Pointer


class Follower:
    """Takes versions in the order of the log. Holds one at a time: its weights become those of the next."""

    def __init__(self) -> None:
        self.version: Version | None = None

    def take(self, head: VersionHead, parts: Iterable[Part]) -> Version | None:
        """The version, decoded; None for a delta while no full version has come. Works for a while.

        Raises Rejected for a version that is not what it says, or a delta on another than the one held. Then none is
        held, and the next full version is needed.
        """
        held, self.version = self.version, None
        if head.kind is VersionKind.FULL:
            self.version = decode_version(head, parts, None if held is None else held.weights)
        elif held is not None:
            self.version = apply_version(held, head, parts)
        return self.version


async def decoded_versions(reader: Reader, wire: WireSettings) -> AsyncIterator[Version]:
    """Every version from the reader's position to the present end, decoded here and now.

    A version's weights are good until the next one. Deltas before the first full version are passed over.
    Raises Rejected for one that cannot be decoded.
    """
    follower = Follower()
    async for logged in read_versions(reader, wire):
        if (version := follower.take(logged.head, logged.parts)) is not None:
            yield version


def take_message(follower: Follower, message: Message) -> Version | None:
    """The version in `message`, whose parts are given back. Works for a while, raises as `Follower.take`."""
    try:
        return follower.take(version_head(message), message.parts)
    finally:
        message.parts.close()  # here and not where the last reference goes: the end of a file may take a while


class Replica:
    """The newest version that was asked for. Not for two tasks at once."""

    def __init__(self, reader: Reader, topic: str, wire: WireSettings, offload: Offload) -> None:
        self._reader = reader
        self._topic = topic
        self._offload = offload
        self._assembler = version_assembler(wire)
        self._follower = Follower()
        self._next = 0  # where the message after the version held begins
        self._in_place = False  # the reader stands there: a seek would throw away what it has fetched ahead
        self._ahead: deque[Record] = deque()  # read, and not looked at
        self._trail = Trail()
        self.came: TraceParent | None = None
        """The span that made the version held, where that is known."""

    async def move_to(self, pointer: Pointer, timeout_seconds: float) -> Version:
        """The version that `pointer` names. Its weights are good until the next call.

        Raises OffsetGone when retention has deleted it (a newer one exists: read control again), Rejected when what
        is there is not that version, BrokerUnavailable when for `timeout_seconds` nothing comes of it.
        """
        held, beginning = self._follower.version, pointer.beginning
        if held is not None and held.head.number == pointer.version:
            return held
        at = TopicPartition(self._topic, pointer.partition)
        if held is None or not beginning.version - 1 <= held.head.number < pointer.version:
            self._follower.version = None
            self._seek(at, beginning.offset)
        elif not self._in_place:
            self._seek(at, self._next)
        self._in_place = False
        version = await self._read_up_to(pointer, timeout_seconds)
        self._in_place = True
        return version

    def _seek(self, at: TopicPartition, offset: int) -> None:
        self._assembler.forget(at.partition)
        self._ahead.clear()
        self._reader.seek(at, offset)

    async def _read_up_to(self, pointer: Pointer, timeout_seconds: float) -> Version:
        deadline = monotonic() + timeout_seconds
        while self._ahead or (left := deadline - monotonic()) > 0:
            if not self._ahead:
                self._ahead.extend(await self._reader.poll(left))
                self._trail.note(self._ahead)
                if self._ahead:  # a slow link may take its time
                    deadline = monotonic() + timeout_seconds
                continue
            record = self._ahead.popleft()
            for outcome in self._assembler.push(
                record.value or b"", key=record.key, partition=record.partition, offset=record.offset, now=monotonic()
            ):
                if (version := await self._take(outcome, pointer)) is not None:
                    return version
        raise BrokerUnavailable(f"version {pointer.version} of {self._topic} did not arrive in {timeout_seconds:g} s")

    async def _take(self, outcome: Message | Refusal, pointer: Pointer) -> Version | None:
        """The version asked for, when this is it."""
        if isinstance(outcome, Refusal):
            raise Rejected(outcome.reason, f"{self._topic} at offset {outcome.offset}: {outcome.detail}")
        head = version_head(outcome)
        follower, self._follower = self._follower, Follower()  # back once it is done: a thread is not cancelled
        expected = pointer.beginning.version if follower.version is None else follower.version.head.number + 1
        if head.number != expected:
            raise Rejected(Reason.MALFORMED, f"found version {head.number} where {expected} should be")
        self.came = self._trail.take(outcome.partition, outcome.first_offset)
        with follow("version.apply", self.came, version_attributes(head)):
            version = await self._offload.run(take_message, follower, outcome)
        self._follower, self._next = follower, outcome.last_offset + 1
        if version is None:
            raise Rejected(Reason.UNSUPPORTED, f"version {head.number} is not a full version")
        return version if head.number == pointer.version else None

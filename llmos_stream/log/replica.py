"""A reader's end of the chain of versions: the weights of one version, brought up to the next ones.

A version costs its reader its own message alone while the reader follows; whoever comes late, or has
lost its place, reads the newest full version and the deltas since.
"""

from collections.abc import Iterable

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, Reason, Rejected
from llmos_stream.log.record_tracing import version_attributes
from llmos_stream.log.stream import MessageStream, foreign
from llmos_stream.log.versions import Version, apply_version, decode_version, version_assembler, version_head
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload
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


def take_message(follower: Follower, message: Message) -> Version | None:
    """The version in `message`, whose parts are given back. Works for a while, raises as `Follower.take`."""
    try:
        return follower.take(version_head(message), message.parts)
    finally:
        message.parts.close()  # here and not where the last reference goes: the end of a file may take a while


class Replica:
    """The newest version that was asked for. Not for two tasks at once."""

    def __init__(
        self, reader: Reader, topic: str, wire: WireSettings, offload: Offload, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._stream = MessageStream(reader, version_assembler(wire), clock=clock, on_refusal=self._refused)
        self._topic = topic
        self._offload = offload
        self._follower = Follower()
        self._wanted: Pointer | None = None
        self._next = 0  # where the message after the version held begins
        self._in_place = False  # the stream stands there: a seek would throw away what it has fetched ahead
        self.parent_span: TraceParent | None = None
        """The span that made the version held, where that is known."""

    async def move_to(self, pointer: Pointer, timeout_seconds: float) -> Version:
        """The version that `pointer` names. Its weights are good until the next call.

        Raises:
            OffsetGone: retention has deleted it; a newer one exists: read control again.
            Rejected: what is there is not that version.
            BrokerUnavailable: for `timeout_seconds` nothing came of it.
        """
        held, beginning = self._follower.version, pointer.beginning
        if held is not None and held.head.number == pointer.version:
            return held
        at = TopicPartition(self._topic, pointer.partition)
        if held is None or not beginning.version - 1 <= held.head.number < pointer.version:
            self._follower.version = None
            self._stream.seek(at, beginning.offset)
        elif not self._in_place:
            self._stream.seek(at, self._next)
        self._in_place, self._wanted = False, pointer
        while (message := await self._stream.awaited(at, timeout_seconds)) is not None:
            if (version := await self._take(message, pointer)) is not None:
                self._in_place = True
                return version
        raise BrokerUnavailable(f"version {pointer.version} of {self._topic} did not arrive in {timeout_seconds:g} s")

    async def _take(self, message: Message, pointer: Pointer) -> Version | None:
        """The version asked for, when this is it. What nobody points to, and is not the next one, is passed over."""
        head, follower = version_head(message), self._follower
        expected = pointer.beginning.version if follower.version is None else follower.version.head.number + 1
        if head.number != expected:
            self._pass_over(message.first_offset, Reason.MALFORMED, f"version {head.number} where {expected} should be")
            return None
        self._follower = Follower()  # the other one is back once it is done: a thread is not cancelled
        self.parent_span = self._stream.span_of(message.partition, message.first_offset)
        with follow("version.apply", self.parent_span, version_attributes(head)):
            version = await self._offload.run(take_message, follower, message)
        self._follower, self._next = follower, message.last_offset + 1
        if version is None:
            raise Rejected(Reason.UNSUPPORTED, f"version {head.number} is not a full version")
        return version if head.number == pointer.version else None

    def _refused(self, refusal: Refusal) -> None:
        if self._is_pointed_to(refusal.offset):
            raise Rejected(refusal.reason, f"{self._topic} at offset {refusal.offset}: {refusal.detail}")

    def _pass_over(self, offset: int, reason: Reason, why: str) -> None:
        if self._is_pointed_to(offset):
            raise Rejected(reason, f"found {why}")
        foreign(self._topic, offset, why)

    def _is_pointed_to(self, offset: int) -> bool:
        """Whether the version must be there, or can be nowhere before: what is wrong with that is for the caller."""
        wanted = self._wanted
        return wanted is None or offset == wanted.beginning.offset or offset >= wanted.offset

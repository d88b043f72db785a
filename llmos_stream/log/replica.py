"""A reader's end of the chain of versions: the weights of one version, brought up to the next ones.

A version costs its reader its own message alone while the reader follows; whoever comes late, or has
lost its place, reads the newest full version and the deltas since.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, OffsetGone, Reason, Rejected
from llmos_stream.log.admission import head_of
from llmos_stream.log.control import ControlView
from llmos_stream.log.cursor import Cursor
from llmos_stream.log.index import VersionIndex
from llmos_stream.log.own_versions import made_here
from llmos_stream.log.record_tracing import version_attributes
from llmos_stream.log.stream import MessageStream, foreign
from llmos_stream.log.versions import (
    Version,
    apply_version,
    check_follows,
    decode_version,
    layout_of,
    version_assembler,
)
from llmos_stream.log.visibility import PROMPT_SECONDS, await_visible
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload
from llmos_stream.telemetry.tracing import TraceParent, follow
from llmos_stream.types import Part, VersionHead, VersionKind
from llmos_stream.wire import Message, Refusal
from llmos_stream.wire.control import Pointer

logger = logging.getLogger(__name__)


class Follower:
    """Takes versions in the order of the log. Holds one at a time: its weights become those of the next.

    One that `shares` takes the weights of a version that this process has made from where they are (see
    `own_versions`), and not from the log.
    """

    def __init__(self, *, shares: bool = False) -> None:
        self.version: Version | None = None
        self._is_shared = False  # its weights are not the follower's alone, to be written over
        self._known: Callable[[bytes], Tensor | None] = made_here if shares else lambda _: None

    def take(self, head: VersionHead, parts: Iterable[Part], digest: bytes) -> Version | None:
        """The version, decoded; None for a delta while no full version has come. Works for a while.

        `digest` is that of its prelude. Raises Rejected for a version that does not follow the one held, which stays.
        Raises it for one that is not what it says, too. Then none is held, and the next full version is needed.
        """
        if self.version is not None:
            check_follows(self.version.head, self.version.digest, head)
        held, self.version = self.version, None
        weights = self._known(digest)
        if head.kind is not VersionKind.FULL and held is None:
            return None
        if weights is not None:
            layout = layout_of(head) if held is None or head.kind is VersionKind.FULL else held.layout
            version = Version(head, layout, weights)
        elif held is None or head.kind is VersionKind.FULL:
            version = decode_version(head, parts, None if held is None or self._is_shared else held.weights)
        else:
            own = replace(held, weights=held.weights.clone()) if self._is_shared else held
            version = apply_version(own, head, parts)
        self._is_shared = weights is not None
        self.version = replace(version, digest=digest)
        return self.version


def take_message(follower: Follower, message: Message) -> Version | None:
    """The version in `message`, whose parts are given back. Works for a while, raises as `Follower.take`."""
    try:
        return follower.take(head_of(VersionHead, message), message.parts, message.head_digest)
    finally:
        message.parts.close()  # here and not where the last reference goes: the end of a file may take a while


class Replica:
    """The newest version that was asked for. Not for two tasks at once.

    Whoever comes late takes the versions that the heads show to stand on each other, whoever follows the next one that
    follows the version held. What others wrote between them is passed over. For `shares` see `Follower`.
    """

    def __init__(
        self,
        reader: Reader,
        wire: WireSettings,
        offload: Offload,
        clock: Clock = SYSTEM_CLOCK,
        *,
        shares: bool = False,
    ) -> None:
        self._reader = reader
        self._stream = MessageStream(reader, version_assembler(wire), clock=clock, on_refusal=self._refused)
        self._topic = reader.partitions[0].topic
        self._offload = offload
        self._clock = clock
        self._follower = Follower(shares=shares)
        self._shares = shares
        self._wanted: Pointer | None = None
        self._chain: Mapping[int, int] | None = None  # offset and number of what is read next, where that is known
        self._next = 0  # where the message after the version held begins
        self._in_place = False  # the stream stands there: a seek would throw away what it has fetched ahead
        self.parent_span: TraceParent | None = None
        """The span that made the version held, where that is known."""

    async def move_to(self, pointer: Pointer, timeout_seconds: float) -> Version:
        """The version that `pointer` names. Its weights are good until the next call.

        Raises:
            OffsetGone: retention has deleted it; a newer one exists: read control again.
            Rejected: what is there is not that version, or does not follow from those before it.
            BrokerUnavailable: for `timeout_seconds` nothing came of it.
        """
        held, number = self._follower.version, pointer.version
        if held is not None and held.head.number == number:
            return held
        if held is not None and pointer.beginning.version - 1 <= held.head.number < number:
            try:
                return await self._move(pointer, timeout_seconds)
            except Rejected as error:
                logger.warning("%s: reading version %d anew from the full one that it stands on", error, number)
        return await self._move(pointer, timeout_seconds, late=True)

    async def _move(self, pointer: Pointer, timeout_seconds: float, *, late: bool = False) -> Version:
        at, in_place = TopicPartition(self._topic, pointer.partition), self._in_place
        self._in_place, self._wanted, self._chain = False, pointer, None
        begun = self._clock.monotonic()
        if late:
            await await_visible(self._reader, pointer, self._clock, begun, timeout_seconds)
            cursor = Cursor(self._reader, at)
            index = VersionIndex(cursor, *await cursor.bounds())
            self._chain = {version.offset: version.head.number for version in await index.chain(pointer)}
            self._follower.version = None
            self._stream.seek(at, min(self._chain))
        elif not in_place:
            self._stream.seek(at, self._next)
        patience = min(timeout_seconds, PROMPT_SECONDS)
        while True:
            message = await self._stream.awaited(at, patience)
            if message is not None:
                if (version := await self._take(message, pointer)) is not None:
                    self._in_place = True
                    return version
            elif patience == timeout_seconds:
                raise BrokerUnavailable(
                    f"version {pointer.version} of {self._topic} did not arrive in {timeout_seconds:g} s"
                )
            else:
                await await_visible(self._reader, pointer, self._clock, begun, timeout_seconds)
                patience = timeout_seconds

    async def _take(self, message: Message, pointer: Pointer) -> Version | None:
        """The version asked for, when this is it. What is not the next one is passed over."""
        head, held = head_of(VersionHead, message), self._follower.version
        if not self._is_next(message.first_offset, head.number, held):
            self._pass_over(message.first_offset, f"version {head.number}, which is not the next one")
            return None
        # Back once it is done: a thread is not cancelled.
        follower, self._follower = self._follower, Follower(shares=self._shares)
        self.parent_span = self._stream.span_of(message.partition, message.first_offset)
        try:
            with follow("version.apply", self.parent_span, version_attributes(head)):
                version = await self._offload.run(take_message, follower, message)
        except Rejected as error:
            if follower.version is None:
                raise
            self._follower = follower
            self._pass_over(message.first_offset, error.detail)
            return None
        self._follower, self._next = follower, message.last_offset + 1
        if version is None:
            raise Rejected(Reason.UNSUPPORTED, f"version {head.number} is not a full version")
        return version if head.number == pointer.version else None

    def _is_next(self, offset: int, number: int, held: Version | None) -> bool:
        if self._chain is not None:
            return self._chain.get(offset) == number
        last = self._wanted is not None and number == self._wanted.version
        return held is not None and number == held.head.number + 1 and (not last or self._is_pointed_to(offset))

    def _refused(self, refusal: Refusal) -> None:
        if self._is_pointed_to(refusal.offset):
            raise Rejected(refusal.reason, f"{self._topic} at offset {refusal.offset}: {refusal.detail}")

    def _pass_over(self, offset: int, why: str) -> None:
        if self._is_pointed_to(offset):
            raise Rejected(Reason.MALFORMED, f"found {why}")
        foreign(self._topic, offset, why)

    def _is_pointed_to(self, offset: int) -> bool:
        """Whether the version must be there, or can be nowhere before: what is wrong with that is for the caller."""
        if self._chain is not None and offset in self._chain:
            return True
        return self._wanted is None or offset >= self._wanted.offset


async def newest_version(control: ControlView, replica: Replica, seconds: float) -> Version | None:
    """The newest version that `control` announces and that is there; None where there is none.

    A pointer that leads to no version of the run is disowned. Raises BrokerUnavailable as `Replica.move_to` does.
    """
    while (pointer := control.latest) is not None:
        try:
            return await replica.move_to(pointer, seconds)
        except (OffsetGone, Rejected) as error:
            await control.catch_up()  # retention may have overtaken it: then a newer one is there
            if control.latest == pointer:
                control.disown(pointer, str(error))
    return None

"""Updates read again from `<f>.updates`, in the order in which manifests name them.

One pass over the topic serves many manifests: reading goes on from where it is, and an update that is complete
before it is wanted is kept, up to a limit. What was passed by is read again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.config import WireSettings
from llmos_stream.core import Update
from llmos_stream.core.fragments import fragment_of
from llmos_stream.errors import OffsetGone, Reason, Rejected
from llmos_stream.log.admission import check_payload_size, head_of, topic_assembler
from llmos_stream.log.stream import MessageStream
from llmos_stream.log.updates import decode_update
from llmos_stream.replay.index import UpdateMissing
from llmos_stream.types import Contribution, Fragment, UpdateHead
from llmos_stream.wire import Message, Prelude, Refusal

_KEEP_BYTES = 256 << 20
"""Of what is complete and not asked for yet."""
_POLL_SECONDS = 1.0


class _Place(NamedTuple):
    partition: int
    offset: int


class RecordedUpdates(MessageStream):
    """Gives the messages of contributions. Open it with `begin`, and use it from one task.

    `ahead` names, in order, the contributions that `take` will be asked for; nothing else is kept. Updates are of
    one of the `fragments`, which bounds their size.
    """

    def __init__(
        self, reader: Reader, ahead: Iterable[Contribution], fragments: Sequence[Fragment], wire: WireSettings
    ) -> None:
        super().__init__(reader, topic_assembler(self._admit, wire), on_gap=self._overtaken)
        self.fragments = fragments
        self._asked = 0
        self._wanted: dict[_Place, int] = {}
        self._identities: dict[tuple[str, int, bytes], _Place] = {}
        self._want(ahead)
        self._reasons: dict[_Place, str] = {}  # why there is none of those wanted
        self._kept: dict[_Place, Message] = {}
        self._kept_bytes = 0
        self._alone: _Place | None = None
        self._oldest: dict[TopicPartition, int] = {}
        self._ends: dict[TopicPartition, int] = {}

    async def begin(self) -> None:
        """Find out what the topic holds, and go to the first update that is wanted."""
        self._ends = await self._reader.end_offsets()
        await self._reader.seek_to_beginning()
        self._oldest = {at: await self._reader.position(at) for at in self._reader.partitions}
        for at, oldest in self._oldest.items():
            there = [offset for partition, offset in self._wanted if partition == at.partition and offset >= oldest]
            self._reader.seek(at, min(there, default=max(self._ends[at], oldest)))

    async def extend(self, ahead: Iterable[Contribution]) -> None:
        """Ask for these too, after the others, and look again at what the log holds."""
        self._want(ahead)
        self._ends = await self._reader.end_offsets()

    def check_kept(self, item: Contribution) -> None:
        """Raise UpdateMissing for an update that is known to be out of the log, without reading."""
        at = TopicPartition(self._topic, item.partition)
        if at not in self._ends:
            raise UpdateMissing(f"{self._name(item)}: the topic has no such partition", gone=False)
        if item.offset < self._oldest[at]:
            detail = f"{self._name(item)} has been deleted by retention (the oldest kept is {self._oldest[at]})"
            raise UpdateMissing(detail, gone=True)
        if item.offset >= self._ends[at]:
            raise UpdateMissing(f"{self._name(item)} is beyond the end ({self._ends[at]})", gone=False)

    async def take(self, item: Contribution) -> Message:
        """Return the message of one contribution; its payload is not verified yet (see `log.updates.decode_update`).

        Never waits for more than the log held when `begin` or `extend` looked.

        Raises:
            UpdateMissing: It is not in the log, or is not what the manifest names.
            BrokerUnavailable: The broker does not give what the log held.
        """
        place, at = _place(item), TopicPartition(self._topic, item.partition)
        rewound = 0
        try:
            while place not in self._kept:
                self.check_kept(item)
                position = await self.position(at)
                if position > place.offset and not self._assembler.has_begun(*place):
                    if rewound == 2:
                        why = self._reasons.get(place, "no update begins there")
                        raise UpdateMissing(f"{self._name(item)} is not what the manifest names: {why}", gone=False)
                    rewound += 1
                    # At last nothing else is collected, so that nothing can push it out.
                    self._alone = place if rewound == 2 else None
                    self.seek(at, place.offset)
                elif position >= self._ends[at]:
                    raise UpdateMissing(f"{self._name(item)} is not complete in the log", gone=False)
                elif (message := await self.next(_POLL_SECONDS)) is not None:
                    self._keep(message, place)
            return self._kept[place]
        finally:
            self._alone = None
            self.drop(item)

    def _want(self, ahead: Iterable[Contribution]) -> None:
        for item in ahead:
            self._wanted[_place(item)] = self._asked
            self._identities[_identity(item)] = _place(item)
            self._asked += 1

    def drop(self, item: Contribution) -> None:
        """Forget a contribution, which will not be asked for again."""
        place = _place(item)
        if (message := self._kept.pop(place, None)) is not None:
            self._kept_bytes -= message.head.payload_size
        self._wanted.pop(place, None)
        self._reasons.pop(place, None)
        self._identities.pop(_identity(item), None)

    def _overtaken(self, _: OffsetGone, oldest: Mapping[TopicPartition, int]) -> None:
        self._oldest.update(oldest)

    def _refused(self, refusal: Refusal) -> None:
        """Whatever is not wanted is refused too: it need be nobody else's."""
        place = _Place(refusal.partition, refusal.offset)
        if place in self._wanted:
            self._reasons[place] = refusal.detail

    def _keep(self, message: Message, target: _Place) -> None:
        place = _Place(message.partition, message.first_offset)
        if place not in self._wanted or place in self._kept:
            return
        self._kept[place] = message
        self._kept_bytes += message.head.payload_size
        while self._kept_bytes > _KEEP_BYTES and (others := self._kept.keys() - {target}):
            last = max(others, key=self._wanted.__getitem__)
            self._kept_bytes -= self._kept.pop(last).head.payload_size

    def _admit(self, prelude: Prelude) -> None:
        head = head_of(UpdateHead, prelude)
        place = self._identities.get((head.client_id, head.sequence, head.payload_digest))
        if place is None or self._alone not in (None, place):
            detail = f"update {head.client_id}/{head.sequence} with payload {head.payload_digest.hex()[:16]} is there"
            raise Rejected(Reason.UNSUPPORTED, detail)
        fragment = fragment_of(self.fragments, head.range)
        check_payload_size(head, fragment.parameters, fragment.buffer_elements)

    def _name(self, item: Contribution) -> str:
        return f"update {item.client_id}/{item.sequence} at {self._topic}[{item.partition}] offset {item.offset}"


def decode_recorded(message: Message, item: Contribution, parent: int | None, fragments: Sequence[Fragment]) -> Update:
    """Return the update of a contribution to the version after `parent`, verified, and close the message's parts.

    Its base version is the one that the manifest implies, or an older one where other fragments moved before its own.
    None: nothing can be said of it.

    Raises:
        UpdateMissing: The log holds something else.
    """
    name = f"update {item.client_id}/{item.sequence}"
    try:
        fragment = fragment_of(fragments, head_of(UpdateHead, message).range)
        update = decode_update(message, fragment.parameters, fragment.buffer_elements)
    except Rejected as error:
        raise UpdateMissing(f"{name}: {error}", gone=False) from None
    finally:
        message.parts.close()
    head = update.head
    newest = head.base_version if parent is None else parent - item.staleness
    fits = head.base_version == newest if len(fragments) == 1 else head.base_version <= newest
    if not fits or head.num_examples < item.num_examples:
        there = f"it names base {head.base_version} and {head.num_examples} examples"
        raise UpdateMissing(f"{name}: {there}, the manifest {newest} and {item.num_examples}", gone=False)
    return update


def _place(item: Contribution) -> _Place:
    return _Place(item.partition, item.offset)


def _identity(item: Contribution) -> tuple[str, int, bytes]:
    return item.client_id, item.sequence, item.payload_digest

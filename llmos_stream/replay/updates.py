"""Updates read again from `<f>.updates`, in the order in which manifests name them.

One pass over the topic serves many manifests: reading goes on from where it is, and an update that is complete
before it is wanted is kept, up to a limit. What was passed by is read again.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.config import WireSettings
from llmos_stream.core import Update
from llmos_stream.errors import OffsetGone, Reason, Rejected
from llmos_stream.log.admission import check_payload_size, head_of, topic_assembler
from llmos_stream.log.stream import RecordStream, value_of
from llmos_stream.log.updates import decode_update
from llmos_stream.replay.index import UpdateMissing
from llmos_stream.types import Contribution, UpdateHead
from llmos_stream.wire import Message, Outcome, Prelude, Refusal

_KEEP_BYTES = 256 << 20
"""Of what is complete and not asked for yet."""
_POLL_SECONDS = 1.0


class _Place(NamedTuple):
    partition: int
    offset: int


class RecordedUpdates:
    """Gives the messages of contributions. Open it with `begin`, and use it from one task.

    `ahead` names, in order, the contributions that `take` will be asked for; nothing else is kept. `layout` bounds
    the size of an update. `at_once` is how many records are taken from the reader at a time.
    """

    def __init__(
        self,
        reader: Reader,
        ahead: Iterable[Contribution],
        layout: Layout,
        wire: WireSettings,
        *,
        at_once: int = 500,
    ) -> None:
        self._reader = reader
        self._stream = RecordStream(reader, on_gap=self._overtaken)
        self._topic = reader.partitions[0].topic
        self._layout = layout
        self._at_once = at_once
        self._asked = 0
        self._wanted: dict[_Place, int] = {}
        self._identities: dict[tuple[str, int, bytes], _Place] = {}
        self._want(ahead)
        self._assembler = topic_assembler(self._admit, wire)
        self._begun: set[_Place] = set()
        self._refused: dict[_Place, str] = {}
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
                position = await self._reader.position(at)
                if place not in self._begun and position > place.offset:
                    if rewound == 2:
                        why = self._refused.get(place, "no update begins there")
                        raise UpdateMissing(f"{self._name(item)} is not what the manifest names: {why}", gone=False)
                    rewound += 1
                    self._rewind(at, place, alone=rewound == 2)
                elif position >= self._ends[at]:
                    raise UpdateMissing(f"{self._name(item)} is not complete in the log", gone=False)
                else:
                    await self._read(place)
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
        self._refused.pop(place, None)
        self._identities.pop(_identity(item), None)

    def _rewind(self, at: TopicPartition, place: _Place, *, alone: bool) -> None:
        """Read a partition again from `place`; `alone`, collect nothing else, so that nothing can push it out."""
        self._assembler.forget(at.partition)
        self._begun = {begun for begun in self._begun if begun.partition != at.partition}
        self._alone = place if alone else None
        self._reader.seek(at, place.offset)

    async def _read(self, target: _Place) -> None:
        for record in await self._stream.poll(_POLL_SECONDS, self._at_once):
            place = _Place(record.partition, record.offset)
            if place in self._wanted:
                self._begun.add(place)
            for outcome in self._assembler.push(
                value_of(record), key=record.key, partition=record.partition, offset=record.offset, now=0.0
            ):
                self._settle(outcome, target)

    def _overtaken(self, _: OffsetGone, oldest: Mapping[TopicPartition, int]) -> None:
        for at in oldest:
            self._assembler.forget(at.partition)
            self._begun = {begun for begun in self._begun if begun.partition != at.partition}
        self._oldest.update(oldest)

    def _settle(self, outcome: Outcome, target: _Place) -> None:
        if isinstance(outcome, Refusal):
            place = _Place(outcome.partition, outcome.offset)
            self._begun.discard(place)
            if place in self._wanted:
                self._refused[place] = outcome.detail
            return
        place = _Place(outcome.partition, outcome.first_offset)
        self._begun.discard(place)
        if place not in self._wanted or place in self._kept:
            return
        self._kept[place] = outcome
        self._kept_bytes += outcome.head.payload_size
        while self._kept_bytes > _KEEP_BYTES and (others := self._kept.keys() - {target}):
            last = max(others, key=self._wanted.__getitem__)
            self._kept_bytes -= self._kept.pop(last).head.payload_size

    def _admit(self, prelude: Prelude) -> None:
        head = head_of(UpdateHead, prelude)
        place = self._identities.get((head.client_id, head.sequence, head.payload_digest))
        if place is None or self._alone not in (None, place):
            detail = f"update {head.client_id}/{head.sequence} with payload {head.payload_digest.hex()[:16]} is there"
            raise Rejected(Reason.UNSUPPORTED, detail)
        check_payload_size(head, self._layout.parameters, self._layout.buffer_elements)

    def _name(self, item: Contribution) -> str:
        return f"update {item.client_id}/{item.sequence} at {self._topic}[{item.partition}] offset {item.offset}"


def decode_recorded(message: Message, item: Contribution, base_version: int | None, layout: Layout) -> Update:
    """Return the update of a contribution, verified and decoded, and close the message's parts.

    `base_version` is the one that the manifest implies, where it does.

    Raises:
        UpdateMissing: The log holds something else.
    """
    name = f"update {item.client_id}/{item.sequence}"
    try:
        update = decode_update(message, layout.parameters, layout.buffer_elements)
    except Rejected as error:
        raise UpdateMissing(f"{name}: {error}", gone=False) from None
    finally:
        message.parts.close()
    head = update.head
    if base_version not in (None, head.base_version) or head.num_examples < item.num_examples:
        there = f"it names base {head.base_version} and {head.num_examples} examples"
        raise UpdateMissing(f"{name}: {there}, the manifest {base_version} and {item.num_examples}", gone=False)
    return update


def _place(item: Contribution) -> _Place:
    return _Place(item.partition, item.offset)


def _identity(item: Contribution) -> tuple[str, int, bytes]:
    return item.client_id, item.sequence, item.payload_digest

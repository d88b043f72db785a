"""What an aggregator writes, one transaction at a time.

A version's records, the pointer to it, the events and the offsets of the updates folded into it
commit together or not at all.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from llmos_stream.broker import Headers, Producer, Sent, TopicPartition, Topics, Transaction
from llmos_stream.config import AggregatorSettings
from llmos_stream.core import Refused
from llmos_stream.log.federation import Federation
from llmos_stream.log.snapshots import EncodedSnapshot
from llmos_stream.log.stream import event_key
from llmos_stream.roles.aggregator.quota import RefusalQuota
from llmos_stream.roles.aggregator.version_chain import Encoded
from llmos_stream.runtime import run_all
from llmos_stream.runtime.logs import Sparing
from llmos_stream.telemetry.event_metrics import OWN
from llmos_stream.telemetry.process_metrics import UNLISTED
from llmos_stream.telemetry.tracing import trace_headers
from llmos_stream.types import Event, EventKind, Role, SnapshotHead, UpdateHead, VersionHead
from llmos_stream.wire import Parts, Refusal, dump_event, message_id, pack_prelude, split
from llmos_stream.wire.control import (
    LATEST,
    RUN,
    STATE,
    Checkpoint,
    Pointer,
    RunEnd,
    dump_run_end,
    dump_running,
    dump_sequences,
    dump_setting,
    sequences_key,
)
from llmos_stream.wire.quarantine import DETAIL_CHARACTERS, dump_quarantined

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())

ROLE = Role.AGGREGATOR


@dataclass(frozen=True, slots=True, eq=False)
class Outgoing:
    """A version on its way into the log, and what must be committed with it.

    `sequences` are the windows to remember (None: a tombstone). `checkpoint` lacks only where the snapshots lie.
    """

    encoded: Encoded
    snapshots: Sequence[EncodedSnapshot]
    sequences: Mapping[str, Sequence[int] | None]
    checkpoint: Checkpoint
    events: Sequence[Event]


class Publisher:
    """Holds quarantine entries and events until the next transaction takes them along."""

    def __init__(self, federation: Federation, producer: Producer, settings: AggregatorSettings) -> None:
        self._federation = federation
        self.producer = producer
        self._topics = federation.topics
        self.newest: tuple[Pointer, Checkpoint | None] | None = None
        """Where the newest version is, and what was written with it."""
        self._quarantine: list[tuple[bytes | None, bytes]] = []
        self._events: list[Event] = []
        self._windows: dict[str, Sequence[int]] = {}
        self._quota = RefusalQuota(settings)

    @property
    def waiting(self) -> int:
        """Records that wait for a transaction."""
        return len(self._quarantine) + len(self._events) + len(self._windows)

    def refuse(self, refusal: Refusal | Refused) -> None:
        """Quarantine a bad update: its head, its reason and its offset, never its payload.

        Of a flood under one key only the beginning is written down (see `quota`).

        One that the core refused has a head that could be read, and is kept under the client that it names.
        """
        refusal = _as_refusal(refusal)
        update = refusal.head if isinstance(refusal.head, UpdateHead) else None
        entry = dump_quarantined(refusal, self._topics.updates, self._federation.clock.time_ms())
        if not self._quota.takes(refusal.key or b"", len(entry[1]), self._federation.clock.monotonic()):
            UNLISTED.inc()
            return
        whose = f", of client {update.client_id!r}" if update else ""
        logger.warning("refused an update at offset %d: %s%s", refusal.offset, refusal.reason, whose)
        self._quarantine.append(entry)
        self._events.append(self._rejected(refusal, update))

    def drop(self, refusal: Refusal | Refused) -> None:
        """Tell of an update that does not count in the course of things. Nothing of it goes into quarantine.

        Of a flood under one key only the beginning is told.
        """
        refusal = _as_refusal(refusal)
        update = refusal.head if isinstance(refusal.head, UpdateHead) else None
        event = self._rejected(refusal, update)
        if not self._quota.takes(refusal.key or b"", len(dump_event(event)), self._federation.clock.monotonic()):
            UNLISTED.inc()
            return
        logger.debug("dropped an update at offset %d: %s", refusal.offset, refusal.reason)
        self._events.append(event)

    def _rejected(self, refusal: Refusal, update: UpdateHead | None) -> Event:
        return self._federation.event(
            EventKind.UPDATE_REJECTED,
            ROLE,
            client_id=update.client_id if update else None,
            sequence=update.sequence if update else None,
            reason=refusal.reason,
            detail=refusal.detail[:DETAIL_CHARACTERS],
            partition=refusal.partition,
            offset=refusal.offset,
        )

    async def write_control(self, records: Mapping[bytes, bytes | None]) -> None:
        """Write control records once more."""
        async with self.producer.transaction() as transaction:
            await run_all(*(transaction.send(self._topics.control, value, key=key) for key, value in records.items()))

    async def resume_run(self, started_ms: int) -> None:
        """Let a run that has ended go on from its newest version; its time counts from `started_ms`."""
        if self.newest is None:
            raise ValueError("there is no version to go on from")
        pointer, checkpoint = self.newest
        resumed = self._federation.event(EventKind.RUN_RESUMED, ROLE, version=pointer.version)
        async with self.producer.transaction() as transaction:
            await transaction.send(self._topics.control, dump_running(pointer.version), key=RUN)
            if checkpoint is not None:
                checkpoint = replace(checkpoint, started_ms=started_ms)
                await transaction.send(self._topics.control, dump_setting(checkpoint), key=STATE)
            await transaction.send(self._topics.events, dump_event(resumed), key=event_key(resumed))
        self.newest = pointer, checkpoint
        OWN.observe(resumed)

    def note(self, entry: Event) -> None:
        """Write `entry` with the next transaction."""
        self._events.append(entry)

    def remind(self, client_id: str, window: Sequence[int]) -> None:
        """Say once more, with the next transaction, which sequences of a client were folded up to the newest version.

        It does not know, or goes by what somebody else wrote.
        """
        self._windows[client_id] = window

    async def commit(
        self, offsets: Mapping[TopicPartition, int], version: Outgoing | None = None, end: RunEnd | None = None
    ) -> Pointer | None:
        """Commit what waits, the offsets that are settled with it, a version, and the end of the run, where given.

        Returns where the version lies.
        """
        if not (self.waiting or offsets or version or end):
            return None
        pointer = None
        events: list[Event] = []
        async with self.producer.transaction() as transaction:
            if version is not None:
                for client_id in version.sequences:
                    self._windows.pop(client_id, None)
                pointer = await self._write_version(transaction, version)
                events += version.events
            if end is not None:
                await transaction.send(self._topics.control, dump_run_end(end), key=RUN)
                events.append(
                    self._federation.event(
                        EventKind.RUN_FINISHED, ROLE, reason=end.reason, detail=end.detail, version=end.version
                    )
                )
            await self._write_waiting(transaction, events, offsets)
        for entry in (*self._events, *events):
            OWN.observe(entry)
        self._quarantine.clear()
        self._events.clear()
        self._windows.clear()
        return pointer

    async def _write_version(self, transaction: Transaction, version: Outgoing) -> Pointer:
        head, control = version.encoded.head, self._topics.control
        snapshots = {}
        for snapshot, parts in version.snapshots:
            identity = message_id(snapshot.tensor, snapshot.version)
            first = await self._write_message(transaction, self._topics.snapshots, snapshot, parts, identity)
            snapshots[snapshot.tensor] = first.offset
        identity = message_id(ROLE, head.number)
        parts, headers = version.encoded.parts, trace_headers()
        first = await self._write_message(transaction, self._topics.models, head, parts, identity, headers)
        pointer = Pointer(head.number, first.partition, first.offset, version.encoded.full)
        self.newest = pointer, replace(version.checkpoint, snapshots=snapshots)
        await run_all(
            transaction.send(control, dump_setting(pointer), key=LATEST),
            transaction.send(control, dump_setting(self.newest[1]), key=STATE),
            *(
                transaction.send(control, dump_sequences(window), key=sequences_key(client_id))
                for client_id, window in version.sequences.items()
            ),
        )
        return pointer

    async def _write_message(
        self,
        transaction: Transaction,
        topic: str,
        head: VersionHead | SnapshotHead,
        parts: Parts,
        identity: bytes,
        headers: Headers = (),
    ) -> Sent:
        records = split(
            pack_prelude(head),
            parts,
            payload_size=head.payload_size,
            message_id=identity,
            chunk_bytes=self._federation.wire.chunk_bytes,
        )
        number = head.number if isinstance(head, VersionHead) else head.version
        return await transaction.send_all(topic, records, key=str(number).encode(), partition=0, headers=headers)

    async def _write_waiting(
        self, transaction: Transaction, events: Sequence[Event], offsets: Mapping[TopicPartition, int]
    ) -> None:
        # Together, not one after the other: each send waits for its acknowledgement.
        await run_all(
            *(transaction.send(self._topics.quarantine, value, key=key) for key, value in self._quarantine),
            *(
                transaction.send(self._topics.control, dump_sequences(window), key=sequences_key(client_id))
                for client_id, window in self._windows.items()
            ),
            *(
                transaction.send(self._topics.events, dump_event(entry), key=event_key(entry))
                for entry in (*self._events, *events)
            ),
        )
        if offsets:
            await transaction.send_offsets(group_of(self._topics), offsets)


def _as_refusal(refusal: Refusal | Refused) -> Refusal:
    """What the core refused, too, under the key of its client."""
    if isinstance(refusal, Refusal):
        return refusal
    key, place = refusal.head.client_id.encode(), (refusal.partition, refusal.offset)
    return Refusal(refusal.reason, refusal.detail, refusal.head, b"", key, *place)


def group_of(topics: Topics) -> str:
    """The consumer group whose committed offsets say how far the aggregator has come."""
    return f"{topics.federation}.aggregator"

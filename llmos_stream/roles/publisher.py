"""What an aggregator writes, one transaction at a time.

A version's records, the pointer to it, the events and the offsets of the updates folded into it
commit together or not at all.
"""

import logging
from base64 import b64encode
from collections.abc import Mapping, Sequence

import orjson

from llmos_stream.broker import Producer, TopicPartition, Topics, Transaction
from llmos_stream.config import Settings
from llmos_stream.roles.control import (
    LATEST,
    RUN,
    Pointer,
    RunEnd,
    dump_latest,
    dump_run_end,
    dump_sequences,
    sequences_key,
)
from llmos_stream.roles.events import event, event_key, now_ms
from llmos_stream.runtime import run_all
from llmos_stream.types import Event, EventKind, UpdateHead, VersionHead
from llmos_stream.wire import Refusal, describe, dump_event, message_id, pack_prelude, split

log = logging.getLogger(__name__)

ROLE = "aggregator"
_DETAIL_CHARACTERS = 1000
_KEY_BYTES = 256


class Publisher:
    """Holds quarantine entries and events until the next transaction takes them along."""

    def __init__(self, producer: Producer, topics: Topics, settings: Settings) -> None:
        self._producer = producer
        self._topics = topics
        self._settings = settings
        self._quarantine: list[tuple[bytes | None, bytes]] = []
        self._events: list[Event] = []

    @property
    def waiting(self) -> int:
        """Records that wait for a transaction."""
        return len(self._quarantine) + len(self._events)

    def refuse(self, refusal: Refusal) -> None:
        """Quarantine a bad update: its head, its reason and its offset, never its payload."""
        head = refusal.head
        update = head if isinstance(head, UpdateHead) else None
        log.warning("refused an update at offset %d: %s", refusal.offset, refusal.reason)
        entry = {
            "reason": refusal.reason,
            "detail": refusal.detail[:_DETAIL_CHARACTERS],
            "topic": self._topics.updates,
            "partition": refusal.partition,
            "offset": refusal.offset,
            "time_ms": now_ms(),
            "head": describe(head, full=False) if head is not None else None,
            "head_bytes": b64encode(refusal.head_bytes).decode(),
        }
        # What was sent decides nothing about the size of this: an entry that Kafka would not take would come again.
        self._quarantine.append(((refusal.key or b"")[:_KEY_BYTES] or None, orjson.dumps(entry)))
        self._events.append(
            event(
                EventKind.UPDATE_REJECTED,
                ROLE,
                client_id=update.client_id if update else None,
                sequence=update.sequence if update else None,
                reason=refusal.reason,
                detail=refusal.detail[:_DETAIL_CHARACTERS],
                partition=refusal.partition,
                offset=refusal.offset,
            )
        )

    def note(self, entry: Event) -> None:
        """Write `entry` with the next transaction."""
        self._events.append(entry)

    async def publish_version(
        self,
        head: VersionHead,
        parts: Sequence[bytes],
        events: Sequence[Event],
        offsets: Mapping[TopicPartition, int],
        *,
        sequences: Mapping[str, Sequence[int] | None],
        end: RunEnd | None = None,
    ) -> None:
        """Commit a version with its events, the offsets that it settles and the sequences that it has seen.

        With `end`, it is the run's last.
        """
        prelude = pack_prelude(head)
        records = split(
            prelude,
            parts,
            payload_size=head.payload_size,
            message_id=message_id(ROLE, head.number),
            chunk_bytes=self._settings.wire.chunk_bytes,
        )
        async with self._producer.transaction() as transaction:
            first = await transaction.send_all(self._topics.models, records, key=str(head.number).encode(), partition=0)
            pointer = Pointer(head.number, first.partition, first.offset)
            await transaction.send(self._topics.control, dump_latest(pointer), key=LATEST)
            await run_all(
                *(
                    transaction.send(self._topics.control, dump_sequences(window), key=sequences_key(client_id))
                    for client_id, window in sequences.items()
                )
            )
            if end is not None:
                events = [*events, await self._write_end(transaction, end)]
            await self._write_waiting(transaction, events, offsets)
        self._forget()

    async def finish(self, end: RunEnd, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit the end of the run, so that everyone leaves."""
        async with self._producer.transaction() as transaction:
            await self._write_waiting(transaction, [await self._write_end(transaction, end)], offsets)
        self._forget()

    async def _write_end(self, transaction: Transaction, end: RunEnd) -> Event:
        await transaction.send(self._topics.control, dump_run_end(end), key=RUN)
        return event(EventKind.RUN_FINISHED, ROLE, reason=end.reason, detail=end.detail, version=end.version)

    async def flush(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit what waits, with the offsets that are safe, when no version takes it along."""
        if not self.waiting and not offsets:
            return
        async with self._producer.transaction() as transaction:
            await self._write_waiting(transaction, [], offsets)
        self._forget()

    async def _write_waiting(
        self, transaction: Transaction, events: Sequence[Event], offsets: Mapping[TopicPartition, int]
    ) -> None:
        # Together, not one after the other: each send waits for its acknowledgement.
        await run_all(
            *(transaction.send(self._topics.quarantine, value, key=key) for key, value in self._quarantine),
            *(
                transaction.send(self._topics.events, dump_event(entry), key=event_key(entry))
                for entry in (*self._events, *events)
            ),
        )
        if offsets:
            await transaction.send_offsets(group_of(self._settings), offsets)

    def _forget(self) -> None:
        self._quarantine.clear()
        self._events.clear()


def group_of(settings: Settings) -> str:
    """The consumer group whose committed offsets say how far the aggregator has come."""
    return f"{settings.federation.name}.aggregator"

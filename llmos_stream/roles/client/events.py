"""What a client tells the federation of itself."""

import logging
from functools import partial

from llmos_stream.errors import BrokerError, Rejected
from llmos_stream.log.events import emit
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.roles.client.state_files import Unsent
from llmos_stream.types import Event, EventKind, Role

logger = logging.getLogger(__name__)


class ClientEvents:
    """Writes one client's events. While the broker does not answer, a method waits for it."""

    def __init__(self, federation: Federation, producer: RetryingProducer, client_id: str) -> None:
        self._federation = federation
        self._producer = producer
        self._client_id = client_id

    async def joined(self, num_examples: int | None) -> None:
        """The client takes part from now on, with so many training examples, where it knows how many.

        Raises:
            BrokerUnavailable: a stop came before the broker answered.
        """
        await self._emit(self._event(EventKind.CLIENT_JOINED, num_examples=num_examples))

    async def left(self, reason: str, updates: int) -> None:
        """The client takes part no longer. Raises as `joined` does."""
        await self._emit(self._event(EventKind.CLIENT_LEFT, reason=reason, updates=updates))

    async def update_sent(self, update: Unsent, *, raw_bytes: int) -> None:
        """The log has acknowledged an update, which would have `raw_bytes` as float32."""
        head = update.head
        await self._emit_settled(
            self._event(
                EventKind.UPDATE_SENT,
                sequence=head.sequence,
                base_version=head.base_version,
                num_examples=head.num_examples,
                codec=head.codec.label,
                raw_bytes=raw_bytes,
                sent_bytes=update.sent_bytes,
                train_seconds=update.train_seconds,
                encode_seconds=update.encode_seconds,
                metrics=dict(head.metrics),
            )
        )

    async def update_rejected(self, sequence: int | None, error: Rejected) -> None:
        """The client did not send an update. It has no sequence if it was not even encoded."""
        which = "an update" if sequence is None else f"update {sequence}"
        logger.warning("%s was not sent: %s; going on from the newest version", which, error.detail)
        reason = str(error.reason)
        await self._emit_settled(
            self._event(EventKind.UPDATE_REJECTED, sequence=sequence, reason=reason, detail=error.detail)
        )

    def _event(self, kind: EventKind, **data: object) -> Event:
        return self._federation.event(kind, Role.CLIENT, client_id=self._client_id, **data)

    async def _emit_settled(self, entry: Event) -> None:
        """Emit what is settled already: a stop that comes first must not make it look undone."""
        try:
            await self._emit(entry)
        except BrokerError as error:
            logger.warning("the event %s was not sent: %s", entry.kind, error)

    async def _emit(self, entry: Event) -> None:
        await self._producer.deliver(partial(emit, topic=self._federation.topics.events, entry=entry))

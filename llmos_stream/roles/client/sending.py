"""How a client's durable updates get into the log, and what is noted once the log has acknowledged or refused them."""

import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from llmos_stream.broker import Producer
from llmos_stream.errors import Rejected
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.roles.client.events import ClientEvents
from llmos_stream.roles.client.flight import Flight
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.roles.client.outcomes import Outcomes
from llmos_stream.roles.client.state import Unsent
from llmos_stream.telemetry.tracing import span, trace_headers
from llmos_stream.types import UpdateHead, elements_in
from llmos_stream.wire import message_id, split

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """An update that the log has acknowledged."""

    head: UpdateHead
    sent_bytes: int
    raw_bytes: int


class Sending:
    """Sends updates, in turn or one of them beside what its client does.

    Args:
        federation: Where to.
        producer: What updates that are sent in turn go through; open.
        outbox: Where they are durable until they are settled.
        numel: How many elements the whole model has.
        events: What tells the federation of them.
        outcomes: What is noted of them.
        check: Raises Rejected where an update on this base version cannot count any more.
    """

    def __init__(
        self,
        federation: Federation,
        producer: RetryingProducer,
        outbox: Outbox,
        numel: int,
        *,
        events: ClientEvents,
        outcomes: Outcomes,
        check: Callable[[int], None],
    ) -> None:
        self._federation = federation
        self._producer = producer
        self._outbox = outbox
        self._numel = numel
        self._events = events
        self._outcomes = outcomes
        self._check = check
        self.flight: Flight | None = None
        """The update that is being sent beside what its client does; None once it has `land`ed."""

    async def send(self, update: Unsent, before: Callable[[], Awaitable[object]]) -> Published:
        """Send until acknowledged; `before` is called before each attempt. Raises Rejected when it cannot count.

        A repeat carries the same sequence, so it can only be counted once.
        """

        async def write(producer: Producer) -> None:
            await before()
            await self._write(producer, update)

        try:
            with span("client.publish", update_attributes(update.head)):
                await self._producer.deliver(write)
        except Rejected as error:
            await self._refused(update, error)
            raise
        return await self._sent(update)

    async def launch(self, update: Unsent) -> None:
        """Begin to send it beside what its client does next."""
        if self.flight is not None:
            raise ValueError("an update is in flight")
        self._outcomes.sending(update.head, self._federation.clock.monotonic())
        flight = Flight(update, self._federation)
        await flight.begin(lambda producer: self._write(producer, update))
        self.flight = flight

    async def land(self) -> Published:
        """Wait until what was launched is acknowledged, and note that. Raises Rejected when it cannot count."""
        if (flight := self.flight) is None:
            raise ValueError("no update is in flight")
        try:
            try:
                await flight.arrival()
            finally:
                await self.end_flight()
        except Rejected as error:
            await self._refused(flight.update, error)
            raise
        return await self._sent(flight.update)

    async def end_flight(self) -> None:
        """Send no more of what is in flight, if anything is."""
        flight, self.flight = self.flight, None
        if flight is not None:
            await flight.end()

    async def give_up(self, sequence: int | None, error: Rejected) -> None:
        """Note and tell that an update does not count, by what this client knows; None: it has no number yet."""
        self._outcomes.give_up(error)
        await self._events.update_rejected(sequence, error)

    async def _write(self, producer: Producer, update: Unsent) -> None:
        """Send it once, unless it cannot count any more."""
        head = update.head
        self._check(head.base_version)
        records = split(
            update.prelude,
            update.parts,
            payload_size=head.payload_size,
            # An id of its own, so that chunks of an earlier attempt are not taken for chunks of this one; by
            # chance, so that no earlier process has used it.
            message_id=message_id(head.client_id, head.sequence, secrets.randbits(64)),
            chunk_bytes=self._federation.wire.chunk_bytes,
        )
        await producer.send_all(
            self._federation.topics.updates, records, key=head.client_id.encode(), headers=trace_headers()
        )

    async def _refused(self, update: Unsent, error: Rejected) -> None:
        await self._federation.run(self._outbox.settle, update.head.sequence)
        await self.give_up(update.head.sequence, error)

    async def _sent(self, update: Unsent) -> Published:
        head = update.head
        self._outcomes.sent(head, self._federation.clock.monotonic())
        await self._federation.run(self._outbox.settle, head.sequence)
        loss = f"loss {head.metrics['loss']:.4f}, " if "loss" in head.metrics else ""
        logger.info(
            "update %d on version %d: %s%d examples, %d bytes",
            head.sequence,
            head.base_version,
            loss,
            head.num_examples,
            update.sent_bytes,
        )
        raw_bytes = 4 * elements_in(head, self._numel)
        await self._events.update_sent(update, raw_bytes=raw_bytes)
        return Published(head, update.sent_bytes, raw_bytes)

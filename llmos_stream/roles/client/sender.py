"""Sending updates: each is durable before it is sent, and sent until the log acknowledges it."""

import logging
import math
import secrets
from contextlib import suppress
from dataclasses import dataclass

from llmos_stream.broker import Producer
from llmos_stream.errors import BrokerError, FederationFinished, Rejected
from llmos_stream.log.control import ControlView
from llmos_stream.log.federation import Federation
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.roles.client.events import ClientEvents
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.roles.client.receiver import VersionReceiver
from llmos_stream.roles.client.state import Unsent
from llmos_stream.telemetry.tracing import span, trace_headers
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import UpdateHead
from llmos_stream.wire import message_id, split

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Published:
    """An update that the log has acknowledged. How long it was encoded is unknown after a restart."""

    head: UpdateHead
    sent_bytes: int
    raw_bytes: int
    encode_seconds: float | None


class UpdateSender:
    """Sends one client's updates, one after the other. Goes on through broker trouble."""

    def __init__(
        self,
        federation: Federation,
        producer: RetryingProducer,
        outbox: Outbox,
        control: ControlView,
        receiver: VersionReceiver,
        events: ClientEvents,
    ) -> None:
        self._federation = federation
        self._producer = producer
        self._outbox = outbox
        self._control = control
        self._receiver = receiver
        self._events = events

    async def publish(self, trained: Trained) -> Published:
        """Encode an update, make it durable and send it. See `Client.publish`."""
        if self._control.finished:
            raise FederationFinished(f"the run has ended: {self._control.finished.reason}")
        try:
            self._receiver.check_base(trained.base_version)
        except Rejected as error:
            await self._events.update_rejected(None, error)
            raise
        while True:
            with span("client.encode") as encoding:
                update, is_new = await self._federation.run(self._outbox.put, trained)
                encoding.set_attributes(update_attributes(update.head))
            if is_new:
                return await self._send(update)
            with suppress(Rejected):
                await self._send(update)

    async def send_unsent(self) -> Published | None:
        """Send the update that was not acknowledged, if there is one. See `Client.send_unsent`."""
        update = await self._federation.run(self._outbox.unsent)
        if update is None:
            return None
        if self._control.finished:
            logger.warning("update %d is given up: the run has ended", update.head.sequence)
            await self._federation.run(self._outbox.settle, update.head.sequence)
            return None
        logger.info("sending update %d, which was not acknowledged", update.head.sequence)
        try:
            return await self._send(update)
        except Rejected:
            return None

    async def _send(self, update: Unsent) -> Published:
        """Send until acknowledged. A repeat carries the same sequence, so it can only be counted once."""
        head = update.head

        async def write(producer: Producer) -> None:
            with suppress(BrokerError):  # for whoever reads next
                await self._control.poll(0)
            self._receiver.check_base(head.base_version)
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

        try:
            with span("client.publish", update_attributes(head)):
                await self._producer.deliver(write)
        except Rejected as error:
            await self._federation.run(self._outbox.settle, head.sequence)
            await self._events.update_rejected(head.sequence, error)
            raise
        self._outbox.outcomes.sent(head, self._federation.clock.monotonic())
        await self._federation.run(self._outbox.settle, head.sequence)
        sent_bytes, raw_bytes = len(update.prelude) + head.payload_size, 4 * self._outbox.numel
        loss = head.metrics.get("loss", math.nan)
        logger.info(
            "update %d on version %d: loss %.4f, %d examples, %d bytes",
            head.sequence,
            head.base_version,
            loss,
            head.num_examples,
            sent_bytes,
        )
        await self._events.update_sent(
            head,
            raw_bytes=raw_bytes,
            sent_bytes=sent_bytes,
            train_seconds=update.train_seconds,
            encode_seconds=update.encode_seconds,
        )
        return Published(head, sent_bytes, raw_bytes, update.encode_seconds)

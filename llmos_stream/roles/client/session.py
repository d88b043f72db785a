"""A client's side of the protocol: the newest version in, updates out. It knows nothing of training."""

import asyncio
import logging
import secrets
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from types import TracebackType
from typing import Self

from torch import Tensor

from llmos_stream.broker import Broker, Producer, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    FederationFinished,
    OffsetGone,
    Reason,
    Rejected,
)
from llmos_stream.log.control import ControlView, Pointer, RunEnd
from llmos_stream.log.events import emit
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.log.replica import Replica
from llmos_stream.log.versions import Version
from llmos_stream.roles.client.events import joined, left, update_rejected, update_sent
from llmos_stream.roles.client.outbox import Draft, Outbox
from llmos_stream.roles.client.state import ClientState, Unsent
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.retry import until_stop
from llmos_stream.telemetry.tracing import TraceParent, span, trace_headers
from llmos_stream.types import Event, UpdateHead
from llmos_stream.wire import message_id, split

logger = logging.getLogger(__name__)

_FETCH_SECONDS = 120.0
_LOOK_SECONDS = 2.0
_REST_SECONDS = 0.5
_LONGEST_PACE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True)
class Published:
    """An update that the log has acknowledged. How long it was encoded is unknown after a restart."""

    head: UpdateHead
    sent_bytes: int
    raw_bytes: int
    encode_seconds: float | None


class Client:
    """One client of a federation; use as an async context manager, then `newest` and `publish` in turn.

    Writing goes on through broker trouble. Reading raises BrokerUnavailable: open another Client on the
    same state then, and `send_unsent` before anything else is published.
    """

    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        client_id: str,
        layout: Layout,
        state: ClientState,
        offload: Offload,
        shutdown: Shutdown,
    ) -> None:
        self._broker = broker
        self._delivery = RetryingProducer(broker, shutdown)
        self._shutdown = shutdown
        self._settings = settings
        self._topics = Topics(settings.federation.name)
        self.client_id = client_id
        self._layout = layout
        self._outbox = Outbox(settings, client_id, layout, state)
        self._offload = offload
        self._max_staleness: int | None = None
        self._stack = AsyncExitStack()
        self._replica: Replica
        self._control: ControlView

    @property
    def finished(self) -> RunEnd | None:
        """Why the run has ended, as far as this client has heard."""
        return self._control.finished

    @property
    def pace_seconds(self) -> float:
        """How long the aggregator asks every client to leave from one update to its next; 0 where it asks nothing."""
        leader = self._control.leader
        return 0.0 if leader is None else min(max(leader.pace_seconds, 0.0), _LONGEST_PACE_SECONDS)

    @property
    def came(self) -> TraceParent | None:
        """The span that made the version given last, where that is known."""
        return self._replica.parent_span

    async def __aenter__(self) -> Self:
        await until_stop(self._open(), self._shutdown)
        return self

    async def _open(self) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._delivery)
            # Versions carry digests of their own.
            models = self._broker.reader([self._topics.models], start="latest", check_crcs=False)
            self._replica = Replica(
                await stack.enter_async_context(models), self._topics.models, self._settings.wire, self._offload
            )
            reader = await stack.enter_async_context(self._broker.reader([self._topics.control], start="earliest"))
            self._control = ControlView(reader)
            await self._control.catch_up()
            await self._offload.run(self._outbox.open)
            self._stack = stack.pop_all()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def join(self, num_examples: int | None) -> None:
        """Tell the federation that this client takes part."""
        await self._emit(joined(self.client_id, num_examples))

    async def leave(self, reason: str, updates: int) -> None:
        """Tell the federation that this client goes. Nobody waits for one that cannot say so."""
        await self._emit(left(self.client_id, reason, updates))

    async def rest(self, seconds: float) -> bool:
        """Let time pass. False when the run has ended or a stop was asked for meanwhile."""
        deadline = monotonic() + seconds
        while (left := deadline - monotonic()) > 0 and not (self.finished or self._shutdown.requested):
            await self._control.poll(min(left, _REST_SECONDS))
        return not (self.finished or self._shutdown.requested)

    async def while_paused(self) -> bool:
        """Wait while an operator has paused the federation, for its end or a stop too. False where nobody has."""
        waited = False
        while self._control.paused:
            if not waited:
                logger.info("the federation is paused: waiting until it goes on")
            waited = True
            if not await self.rest(_REST_SECONDS):
                break
        return waited

    async def newest(self, above: int | None, seconds: float) -> Version | None:
        """The newest version above `above`; None when there is none after `seconds`, at shutdown or at the end.

        Its weights are good until the next call.
        """
        await self._control.newer_than(above, seconds, self._shutdown)
        pointer = self._control.latest
        if self._shutdown.requested or pointer is None or (above is not None and pointer.version <= above):
            return None
        try:
            version = await self._fetch(pointer)
        except OffsetGone:
            # Retention overtook the pointer: a newer one is on its way or already there.
            await until_stop(self._control.catch_up(), self._shutdown)
            if self._control.latest == pointer:
                raise
            return await self.newest(above, seconds)
        if version is None:
            return None
        if version.layout.digest != self._layout.digest:
            raise ConfigError(
                "task.entry, task.share: this client's shared tensors are not the federation's "
                f"({_difference(self._layout, version.layout)})"
            )
        self._max_staleness = _max_staleness(version.head.rule)
        return version

    async def _fetch(self, pointer: Pointer) -> Version | None:
        """The version that `pointer` names; None when a stop comes first."""
        try:
            return await until_stop(self._replica.move_to(pointer, _FETCH_SECONDS), self._shutdown)
        except BrokerUnavailable:
            if self._shutdown.requested:
                return None
            raise

    async def publish(
        self,
        delta: Tensor,
        base_version: int,
        *,
        num_examples: int,
        metrics: Mapping[str, float],
        train_seconds: float,
    ) -> Published:
        """Encode `delta` (flat, float32), make it durable and send it; returns when the log has acknowledged it.

        An earlier update that was not acknowledged is sent first. Raises FederationFinished when the run has
        ended, Rejected(TOO_STALE) when so many versions came since `base_version` that the update could not
        count: go on from the newest; TaskError when the delta is not finite; StateError when it cannot be kept.
        """
        await self._look()
        if self.finished:
            raise FederationFinished(f"the run has ended: {self.finished.reason}")
        try:
            self._check_staleness(base_version)
        except Rejected as error:
            await self._tell_rejected(error, None)
            raise
        draft = Draft(delta, base_version, num_examples, metrics, train_seconds)
        while True:
            with span("client.encode") as encoding:
                update, mine = await self._offload.run(self._outbox.put, draft)
                encoding.set_attributes(update_attributes(update.head))
            if mine:
                return await self._send(update)
            with suppress(Rejected):
                await self._send(update)

    async def send_unsent(self) -> Published | None:
        """Send the update that was not acknowledged, if there is one, with the sequence it has.

        None when there is none, and when it cannot count any more: it is given up then. Call it once `newest`
        has told what counts.
        """
        update = await self._offload.run(self._outbox.unsent)
        if update is None:
            return None
        await self._look()
        if self.finished:
            logger.warning("update %d is given up: the run has ended", update.head.sequence)
            await self._offload.run(self._outbox.settle, update.head.sequence)
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
            self._check_staleness(head.base_version)
            records = split(
                update.prelude,
                update.parts,
                payload_size=head.payload_size,
                # An id of its own, so that chunks of an earlier attempt are not taken for chunks of this one; by
                # chance, so that no earlier process has used it.
                message_id=message_id(self.client_id, head.sequence, secrets.randbits(64)),
                chunk_bytes=self._settings.wire.chunk_bytes,
            )
            headers = trace_headers()
            await producer.send_all(self._topics.updates, records, key=self.client_id.encode(), headers=headers)

        try:
            with span("client.publish", update_attributes(head)):
                await self._delivery.deliver(write)
        except Rejected as error:
            await self._offload.run(self._outbox.settle, head.sequence)
            await self._tell_rejected(error, head.sequence)
            raise
        await self._offload.run(self._outbox.settle, head.sequence)
        sent_bytes, raw_bytes = len(update.prelude) + head.payload_size, 4 * self._layout.numel
        sent = update_sent(
            head,
            raw_bytes=raw_bytes,
            sent_bytes=sent_bytes,
            train_seconds=update.train_seconds,
            encode_seconds=update.encode_seconds,
        )
        await self._tell(sent)
        return Published(head, sent_bytes, raw_bytes, update.encode_seconds)

    async def _look(self) -> None:
        """Hear what came while nobody listened, as far as the broker answers in time."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._control.hear()

    def _check_staleness(self, base_version: int) -> None:
        newest = self._control.latest
        if newest is None or self._max_staleness is None:
            return
        if (staleness := newest.version - base_version) > self._max_staleness:
            raise Rejected(
                Reason.TOO_STALE,
                f"base version {base_version} is {staleness} versions old; staleness.maximum is {self._max_staleness}",
            )

    async def _tell_rejected(self, error: Rejected, sequence: int | None) -> None:
        which = "an update" if sequence is None else f"update {sequence}"
        logger.warning("%s was not sent: %s; going on from the newest version", which, error.detail)
        await self._tell(update_rejected(self.client_id, sequence, error))

    async def _tell(self, entry: Event) -> None:
        """Emit what is settled already: a stop that comes first must not make it look undone."""
        try:
            await self._emit(entry)
        except BrokerError as error:
            logger.warning("the event %s was not sent: %s", entry.kind, error)

    async def _emit(self, entry: Event) -> None:
        await self._delivery.deliver(partial(emit, topic=self._topics.events, entry=entry))


def _max_staleness(rule: Mapping[str, object]) -> int | None:
    """`staleness.maximum` of the rule that a version was made under; it came from the log, so it may be anything."""
    staleness = rule.get("staleness")
    maximum = staleness.get("maximum") if isinstance(staleness, Mapping) else None
    return maximum if isinstance(maximum, int) and not isinstance(maximum, bool) and maximum >= 0 else None


def _difference(mine: Layout, theirs: Layout) -> str:
    here, there = ({spec.name: spec for spec in layout.tensors} for layout in (mine, theirs))
    for name in here.keys() | there.keys():
        if here.get(name) != there.get(name):
            return f"{name}: {here.get(name, 'absent')} here, {there.get(name, 'absent')} there"
    return "another order"

"""A client's connection to its federation: versions in, updates out, and what the control topic says.

It knows nothing of training, and decides nothing: see `participation`.
"""

import asyncio
import logging
import math
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from typing import Self

from torch import Tensor

from llmos_stream.broker import Reader, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import ClientSettings, CodecSettings
from llmos_stream.core.client_policy import Heard, is_too_stale
from llmos_stream.core.participation import why_unwanted
from llmos_stream.errors import (
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    FederationFinished,
    NotWanted,
    OffsetGone,
    Reason,
    Rejected,
)
from llmos_stream.log.control import ControlView, RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.log.replica import Replica, newest_version
from llmos_stream.log.stream import value_of
from llmos_stream.log.versions import Version, fragments_of
from llmos_stream.roles.client.carry import Cut
from llmos_stream.roles.client.events import ClientEvents
from llmos_stream.roles.client.flight import Flight
from llmos_stream.roles.client.orders import Orders
from llmos_stream.roles.client.outbox import Outbox
from llmos_stream.roles.client.outcomes import Outcomes
from llmos_stream.roles.client.sending import Published, Sending
from llmos_stream.roles.client.state import ClientState, Unsent
from llmos_stream.telemetry.tracing import TraceParent, span
from llmos_stream.training.differences import difference
from llmos_stream.training.shared_model import Trained

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 2.0
_LISTEN_SECONDS = 0.5
_AT_ONCE = 500
_FETCH_SECONDS = 120.0
_ROOM_SECONDS = 20.0


class Client:
    """One client of a federation; use as an async context manager, then `newest` and `publish` in turn.

    In place of `publish`, `put` and `launch` send an update while the client goes on, and `land` takes in what came of
    it; nothing else may be sent before.

    Writing goes on through broker trouble. Reading raises BrokerUnavailable: open another Client on the
    same state then, and `send_unsent` before anything else is published.
    """

    def __init__(
        self,
        federation: Federation,
        client_id: str,
        layout: Layout,
        codec: CodecSettings,
        state: ClientState,
        settings: ClientSettings | None = None,
    ) -> None:
        self.client_id = client_id
        self._orders = Orders(settings or ClientSettings(), codec)
        self._num_examples: int | None = None
        self._federation = federation
        self._layout = layout
        self._outbox = Outbox(codec, client_id, layout, state, federation.clock)
        self._state = state
        self._refusals: Reader | None = None
        self._producer = federation.producer()
        self.events = ClientEvents(federation, self._producer, client_id)
        """What it tells the federation of itself."""
        self._sending = Sending(
            federation,
            self._producer,
            self._outbox,
            layout.numel,
            events=self.events,
            outcomes=state.outcomes,
            check=self._check_base,
        )
        self._stack = AsyncExitStack()
        self._control: ControlView
        self._replica: Replica
        self._max_staleness: int | None = None

    @staticmethod
    def needs(topics: Topics) -> tuple[str, ...]:
        """The topics that a client cannot do without. It reads why updates are refused only where it may."""
        return topics.updates, topics.models, topics.control, topics.events

    @property
    def finished(self) -> RunEnd | None:
        """Why the run has ended, as far as this client has heard."""
        return self._control.finished

    @property
    def version_span(self) -> TraceParent | None:
        """The span that made the version received last, where that is known."""
        return self._replica.parent_span

    async def __aenter__(self) -> Self:
        await self._federation.until_stop(self._open())
        return self

    async def _open(self) -> None:
        federation = self._federation
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._producer)
            models = await stack.enter_async_context(
                federation.reader(federation.topics.models, "latest", check_crcs=False)
            )
            stack.push_async_callback(self._sending.end_flight)
            self._control = control = await stack.enter_async_context(federation.control(sequences_of=self.client_id))
            self._state.begin(control.sequences.get(self.client_id))
            self._refusals = await self._follow_refusals(stack)
            self._replica = federation.replica(models, shares=True)
            await federation.run(self._outbox.open)
            self._stack = stack.pop_all()

    @property
    def outcomes(self) -> Outcomes:
        """What became of this client's updates."""
        return self._state.outcomes

    async def _follow_refusals(self, stack: AsyncExitStack) -> Reader | None:
        """What is refused from now on; None where this client may not read it: it goes without the reasons then."""
        try:
            return await stack.enter_async_context(
                self._federation.reader(self._federation.topics.quarantine, "latest")
            )
        except BrokerError as error:
            logger.info("going on without the reasons for refusals: %s", error)
            return None

    async def _learn(self) -> None:
        """Take in what the log says of this client's updates, and say what its owner should know."""
        control, outcomes, now = self._control, self.outcomes, self._federation.clock.monotonic()
        if (numbers := control.sequences.pop(self.client_id, None)) is not None:
            outcomes.take_window(numbers, now)
        if self._refusals is not None:
            try:
                for record in await self._refusals.poll(0, _AT_ONCE):
                    outcomes.take_refusal(value_of(record), now)
            except (BrokerError, OffsetGone) as error:
                logger.info("going on without the reasons for refusals: %s", error)
                self._refusals = None
        outcomes.look(now, 0.0 if control.finished else now - control.heard_at)

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def heard(self) -> Heard:
        """What the control topic says, as far as this client has read it."""
        latest, leader, end = self._control.latest, self._control.leader, self._control.finished
        refused_at = self.outcomes.refused_for_room_at
        return Heard(
            newest=None if latest is None else latest.version,
            pace_seconds=max(self.settings.pace_seconds, 0.0 if leader is None else leader.pace_seconds),
            steps_per_second=0.0 if leader is None else leader.steps_per_second,
            paused=self._control.paused,
            ended=None if end is None else end.reason,
            stopping=self._federation.shutdown.requested,
            unwanted=self.why_unwanted,
            rests_until=-math.inf if refused_at is None else refused_at + _ROOM_SECONDS,
        )

    @property
    def settings(self) -> ClientSettings:
        """Its settings, with what the operator has set for it."""
        self._orders.take(self._control.orders.get(self.client_id))
        return self._orders.client

    @property
    def codec(self) -> CodecSettings:
        """How its updates are written, likewise."""
        self._orders.take(self._control.orders.get(self.client_id))
        return self._orders.codec

    def require_wanted(self) -> None:
        """Raise NotWanted where the operator does not want this client."""
        if (why := self.why_unwanted) is not None:
            raise NotWanted(f"federation {self._federation.name} does not want this client: {why}")

    @property
    def why_unwanted(self) -> str | None:
        """Why the operator does not want this client; None where it does."""
        control = self._control
        if (why := why_unwanted(self.client_id, control.participation, control.orders.get(self.client_id))) is not None:
            return why
        least = control.participation.min_examples
        if self._num_examples is not None and self._num_examples < least:
            return f"it has {self._num_examples} examples, and the operator asks for {least}"
        return None

    async def leave(self, reason: str, updates: int) -> None:
        """Say that it takes part no longer. Raises NotWanted where that is because the operator does not want it."""
        await self.events.left(reason, updates)
        if self.finished is None:
            self.require_wanted()

    async def joined(self, num_examples: int | None) -> None:
        """Say that it takes part from now on. See `ClientEvents.joined`."""
        self._num_examples = num_examples
        await self.events.joined(num_examples)

    async def listen(self, seconds: float) -> None:
        """Take in what comes on the control topic, as soon as something does, for a part of `seconds`."""
        await self._control.poll(min(max(seconds, 0.0), _LISTEN_SECONDS))
        await self._learn()

    async def look(self) -> None:
        """Take in what came on the control topic while nobody listened, as far as the broker answers in time."""
        with suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(_LOOK_SECONDS):
                await self._control.hear()
                await self._learn()

    async def newest(self, above: int | None, seconds: float) -> Version | None:
        """The newest version above `above`; None when there is none after `seconds`, at shutdown or at the end.

        Its weights are good until the next call.

        Raises:
            ConfigError: the version is of another model than this client's.
            BrokerUnavailable: the version did not arrive.
        """
        await self._control.newer_than(above, seconds, self._federation.shutdown)
        version = await self._fetch(above)
        if version is not None:
            if version.layout.digest != self._layout.digest:
                raise ConfigError(
                    "task.entry, task.share: this client's shared tensors are not the federation's "
                    f"({difference(self._layout, version.layout)})"
                )
            self._max_staleness = max_staleness_of(version.head.rule)
            self.outcomes.take_manifest(version.head, self._federation.clock.monotonic())
        await self._learn()
        return version

    def _cut_of(self, version: Version) -> Cut:
        if (count := fragments_of(version.head.rule)) == 1:
            return Cut(number=version.head.number)
        oldest = 0 if self._max_staleness is None else version.head.number - self._max_staleness
        try:
            return Cut(self._layout.fragments(count), version.head.range, oldest, version.head.number)
        except ValueError as error:
            raise ConfigError(f"aggregation.fragments: version {version.head.number} is cut wrongly: {error}") from None

    async def start_from(self, version: Version) -> Tensor:
        """The weights to train from, where this is the newest version: its own, which are not to be written to.

        Of a model in fragments, with what this client has learnt in those that it has not sent yet.
        """
        if self.finished is not None:
            return version.weights
        return await self._federation.run(self._outbox.start, version.weights, self._cut_of(version))

    async def _fetch(self, above: int | None) -> Version | None:
        """The newest version; None when a stop comes first, and where what was announced is none."""
        shutdown, pointer = self._federation.shutdown, self._control.latest
        if shutdown.requested or pointer is None or (above is not None and pointer.version <= above):
            return None
        try:
            found = await self._federation.until_stop(newest_version(self._control, self._replica, _FETCH_SECONDS))
        except BrokerUnavailable:
            if self._federation.shutdown.requested:  # by now
                return None
            raise
        return None if found is None or (above is not None and found.head.number <= above) else found

    def _check_base(self, base: int) -> None:
        """Raises Rejected(TOO_STALE) when an update on version `base` cannot count any more, by what is known."""
        newest = None if self._control.latest is None else self._control.latest.version
        if is_too_stale(base, newest, self._max_staleness):
            raise Rejected(
                Reason.TOO_STALE,
                f"base version {base} is {(newest or 0) - base} versions old; "
                f"staleness.maximum is {self._max_staleness}",
            )

    async def publish(self, trained: Trained) -> Published:
        """Encode an update, make it durable and send it; returns when the log has acknowledged it. Raises as `put`."""
        return await self._send(await self.put(trained))

    async def put(self, trained: Trained) -> Unsent:
        """Encode an update and make it durable: what is to be sent now.

        An earlier update that was not acknowledged is sent first.

        Raises:
            FederationFinished: the run has ended.
            Rejected: (TOO_STALE) so many versions came since the base version that the update could not count: go on
                from the newest.
            TaskError: the delta is not finite.
            StateError: the update cannot be kept.
        """
        await self.look()
        if self._control.finished:
            raise FederationFinished(f"the run has ended: {self._control.finished.reason}")
        try:
            self._check_base(trained.base_version)
        except Rejected as error:
            await self._sending.give_up(None, error)
            raise
        await self._federation.run(self._outbox.use, self.codec)
        while True:
            with span("client.encode") as encoding:
                update, is_new = await self._federation.run(self._outbox.put, trained)
                encoding.set_attributes(update_attributes(update.head))
            if is_new:
                return update
            with suppress(Rejected):
                await self._send(update)

    async def launch(self, update: Unsent) -> None:
        """Begin to send what was `put`, beside what this client does next. It hears nothing meanwhile by itself."""
        await self._sending.launch(update)

    @property
    def flight(self) -> Flight | None:
        """The update that is being sent beside what this client does; None once it has `land`ed."""
        return self._sending.flight

    async def land(self) -> Published:
        """Wait until what was launched is acknowledged, and note that. Raises as `publish`."""
        return await self._sending.land()

    async def send_unsent(self) -> Published | None:
        """Send the update that was not acknowledged, if there is one, with the sequence it has.

        Returns None when there is none, and when it cannot count any more: it is given up then. Call it once `newest`
        has told what counts.
        """
        await self.look()
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
        """Send until acknowledged, and hear what counts before each attempt."""
        return await self._sending.send(update, self._hear)

    async def _hear(self) -> None:
        with suppress(BrokerError):  # for whoever reads next
            await self._control.poll(0)


def max_staleness_of(rule: Mapping[str, object]) -> int | None:
    """`staleness.maximum` of the rule that a version was made under; it came from the log, so it may be anything."""
    staleness = rule.get("staleness")
    maximum = staleness.get("maximum") if isinstance(staleness, Mapping) else None
    return maximum if isinstance(maximum, int) and not isinstance(maximum, bool) and maximum >= 0 else None

"""The aggregator's loop, from received updates to committed versions."""

import logging
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings, StopSettings
from llmos_stream.core import (
    Duplicate,
    Effect,
    Expected,
    Folded,
    NewVersion,
    Participants,
    Refused,
    State,
    Update,
    device_for,
    next_deadline,
    start,
    step,
    tick,
)
from llmos_stream.core.speeds import Speeds
from llmos_stream.errors import FederationFinished, Reason
from llmos_stream.log.control import ControlView
from llmos_stream.log.federation import Federation
from llmos_stream.log.pausing import set_paused
from llmos_stream.log.record_tracing import update_attributes
from llmos_stream.log.versions import local_rule
from llmos_stream.roles.aggregator.commit import Committing
from llmos_stream.roles.aggregator.leadership import Load
from llmos_stream.roles.aggregator.publisher import ROLE, Publisher
from llmos_stream.roles.aggregator.recovery import Recovered, resumed_state
from llmos_stream.roles.aggregator.rollback import collapse_event, weights_of
from llmos_stream.roles.aggregator.site_evaluations import Roster
from llmos_stream.roles.aggregator.source import UpdateSource
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.roles.aggregator.waiting import Waiting, WaitingUpdates
from llmos_stream.telemetry.event_metrics import OWN
from llmos_stream.telemetry.process_metrics import BUFFERED, FOREIGN, PAUSED
from llmos_stream.telemetry.tracing import span
from llmos_stream.training.local_steps import STEPS_PER_SECOND
from llmos_stream.types import EventKind, TopicKind, UpdateHead
from llmos_stream.wire import Refusal
from llmos_stream.wire.control import LATEST, RUN, RunEnd

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


async def _hold() -> None:
    """Nobody else leads."""


class Folding:
    """State and resources of one running aggregator. Call `begin` or `resume`, then `run`."""

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        layout: Layout,
        source: UpdateSource,
        ending: Ending,
        publisher: Publisher,
        participants: Participants | None = None,
    ) -> None:
        self._federation = federation
        self._clock = federation.clock
        self._source = source
        self._ending = ending
        self.publisher = publisher
        self._rule = local_rule(settings)
        self._usual_refusals = self._rule.strategy().usual_refusals
        self._device = device_for(settings.aggregator.device)
        self._hangs_seconds = 2 * settings.broker.transaction_timeout_seconds
        self._layout = layout
        self._waiting = WaitingUpdates()
        self._load = Load()
        self._participants = participants or Participants()
        self._speeds = Speeds()
        self._committing = Committing(
            federation, settings, self._rule, layout, source, ending, publisher, self._participants
        )
        self._keep_place: Callable[[], Awaitable[object]] = _hold
        self._asked_to_finish: Callable[[], bool] = lambda: False
        self._on_collapse = settings.guard.on_collapse
        self._goes_back_to: int | None = None
        self._paused = False
        self._paused_at = 0.0
        self._round: float | None = None  # recovery before the first one may take long
        self._end: RunEnd | None = None
        self._state: State
        ending.know(Roster(self._takes_part, lambda: self._participants.count(self._clock.monotonic())))

    def _takes_part(self, client_id: str) -> bool:
        """Whether an update of this client was folded, as far as that is remembered."""
        return self._state.sequences.of(client_id) is not None

    def load(self) -> Load | None:
        """How busy this is; None when the loop has not come round for so long that it must hang.

        A transaction that takes longer than that is aborted by the broker anyway.
        """
        if self._round is not None and self._clock.monotonic() - self._round > self._hangs_seconds:
            return None
        return self._load

    async def begin(
        self,
        weights: Tensor,
        version: int = 0,
        *,
        floor: int = 0,
        started_from: Mapping[str, object] | None = None,
    ) -> None:
        """Publish `weights` as the first version of a new federation. No update on one below `floor` counts.

        `started_from` says where the weights are from, where that is not the task.
        """
        self._committing.begin(started_from)
        await self._publish(self._begun(weights, version, None, floor=floor))

    def _begun(self, weights: Tensor, version: int, parent: int | None, *, floor: int = 0) -> NewVersion:
        """Begin a state whose moments are new, and return the version to publish."""
        layout = self._layout
        self._state = start(
            weights,
            layout.digest,
            version,
            rule=self._rule,
            floor=floor,
            buffers=layout.buffers,
            fragments=layout.fragments(self._rule.aggregation.fragments),
            device=self._device,
        )
        moments = {name: tensor.cpu() for name, tensor in self._state.pipeline.state_tensors().items()}
        return NewVersion(version, parent, weights, (), {}, moments)

    async def resume(self, found: Recovered) -> None:
        """Go on from what the log holds."""
        checkpoint = found.checkpoint
        if checkpoint is not None:
            self._ending.resume(checkpoint.started_ms, checkpoint.stop, checkpoint.evaluations or 0)
        await self._source.resume({} if checkpoint is None else checkpoint.intake)
        self._committing.resume(found)
        self._state = resumed_state(self._rule, self._device, self._layout, found)
        newest = found.newest.head
        clients = (item.client_id for item in newest.manifest)
        self._participants.resume(clients, newest.number, self._clock.monotonic())

    async def go_on(self, ended: RunEnd) -> None:
        """Let a run that has ended go on.

        Raises:
            FederationFinished: It is over under the present stop settings, too.
        """
        self._ending.count_anew()
        number = self._state.version
        if (end := await self._ending.caught_up(number)) is not None:
            hint = f"; change stop.{end.reason} to go on" if end.reason in StopSettings.model_fields else ""
            raise FederationFinished(
                f"federation {self._federation.name} ended at version {ended.version}, and is over still: "
                f"{end.detail}{hint}"
            )
        await self.publisher.resume_run(self._ending.started_ms)
        logger.info("the run goes on from version %d, where it had ended: %s", number, ended.detail)

    async def announce_again(self, control: ControlView) -> None:
        """Where somebody else has written over what this one has: write it again."""
        announced, spoilt = control.latest, control.spoilt
        if announced is not None and not self._committing.has_published(announced):
            control.disown(announced, "it is not of the aggregator that leads")
            spoilt.add(LATEST)
        if control.finished is not None:
            # Whoever ends a run leads first, and would have fenced this one.
            control.went_on()
            FOREIGN.labels(TopicKind.CONTROL).inc()
            spoilt.add(RUN)
        if spoilt:
            logger.warning("others have written over %d control records of this aggregator", len(spoilt))
            control.spoilt = set()
            await self._committing.write_again(spoilt, self._state)

    async def run(
        self,
        paused: Callable[[], bool] = lambda: False,
        keep_place: Callable[[], Awaitable[object]] = _hold,
        asked_to_finish: Callable[[], bool] = lambda: False,
    ) -> RunEnd | None:
        """Fold until the stop rule fires or an operator has `asked_to_finish` (returned), or a stop is asked for.

        None then. Nothing is folded while it is `paused`. `keep_place` is called again and again, and what it raises
        ends this.
        """
        self._keep_place, self._asked_to_finish = keep_place, asked_to_finish
        while not self._is_over():
            await self._look_round()
            if await self._goes_on(paused):
                await self._receive(paused)
        if self._end is None:
            await self.publisher.commit(self._source.committable_offsets())
        return self._end

    def _is_over(self) -> bool:
        return self._end is not None or self._federation.shutdown.requested

    async def _look_round(self) -> None:
        """What is due however the updates come, also in a pause."""
        self._round = self._clock.monotonic()
        lag = await self._source.lag()
        self._load = self._load._replace(lag=lag)
        OWN.set_lag(lag)
        BUFFERED.set(len(self._waiting))
        await self._keep_place()
        self._end = self._end or await self._observe()
        await self._guard()
        await self._committing.flush_sometimes()

    async def _goes_on(self, paused: Callable[[], bool]) -> bool:
        """Wait while it is paused. False when the run has ended or a stop is asked for."""
        while not self._is_over() and self._rests(paused()):
            await self._look_round()
            await self._federation.wait(_POLL_SECONDS)
        return not self._is_over()

    def _rests(self, paused: bool) -> bool:
        if paused and not self._paused:
            logger.info("paused: nothing is folded until `llmos-stream resume`")
            self._paused_at = self._clock.monotonic()
        elif self._paused and not paused:
            logger.info("going on after the pause")
            self._source.resumed_after_pause()
            self._participants.rested(self._clock.monotonic() - self._paused_at)
        self._paused = paused
        PAUSED.set(paused)
        return paused

    async def _receive(self, paused: Callable[[], bool]) -> None:
        """Take what one poll brings. Where a pause comes between, the rest of it waits, and is taken first afterwards.

        Only the next update is decoded meanwhile: the source does nothing until it is asked for another.
        """
        async with aclosing(self._source.receive(self._patience(), self._state.version)) as updates:
            async for received in updates:
                if await self._goes_on(paused):
                    await self._take(received)
                    await self._move_overdue()
                del received  # as large as the model, and the next one is on its way
                if self._is_over():
                    break  # what is left is held: it is read again
        if await self._goes_on(paused):
            await self._tick()

    async def _tick(self) -> None:
        deadline = next_deadline(self._state)
        if deadline is not None and deadline <= self._clock.monotonic():
            self._state, effects = await self._federation.run(tick, self._state, self._clock.monotonic())
            await self._apply(effects)

    async def _move_overdue(self) -> None:
        """Of fragments, none may wait until the next poll: what waits in one may be too stale by then."""
        while len(self._state.pipelines) > 1 and next_deadline(self._state) == -math.inf and not self._is_over():
            await self._tick()

    async def _guard(self) -> None:
        """Act on a collapse of the model. A version that goes back comes once no update waits for another one."""
        if (collapse := self._ending.collapse) is not None:
            self._ending.collapse = None
            event = collapse_event(self._federation, collapse, self._on_collapse)
            logger.error("the model has collapsed: %s", dict(event.data))
            if self._on_collapse == "pause":
                await set_paused(self._federation.broker, self._federation.topics, True)
            self.publisher.note(event)
            await self.publisher.commit({})
            if self._on_collapse == "rollback" and collapse.best is not None:
                self._goes_back_to = collapse.best[0]
        if self._goes_back_to is not None and not len(self._waiting) and self._end is None:
            version, self._goes_back_to = self._goes_back_to, None
            await self._go_back(version)

    async def _go_back(self, version: int) -> None:
        """Publish a version that equals an older one. Moments start anew, and no update on a version between counts."""
        weights = await weights_of(self._federation, version)
        if weights is None:
            return
        parent, sequences = self._state.version, self._state.sequences
        number = parent + 1
        new = self._begun(weights, number, parent, floor=number)
        self._state.sequences = sequences
        if self._ending.guard is not None:
            self._ending.guard.forget_before(number)
        await self._publish(new, equals=version)
        logger.warning("version %d goes back to version %d", number, version)

    async def _observe(self) -> RunEnd | None:
        version = self._state.version
        end = self._ending.by_operator(version) if self._asked_to_finish() else await self._ending.observe(version)
        if end is not None:
            await self.publisher.commit(self._source.committable_offsets(), end=end)
        return end

    def _patience(self) -> float:
        deadline = next_deadline(self._state)
        return _POLL_SECONDS if deadline is None else min(max(deadline - self._clock.monotonic(), 0.0), _POLL_SECONDS)

    async def _take(self, received: Update | Refusal) -> None:
        if isinstance(received, Refusal):
            self._refuse(received)
            return
        begun, head = self._clock.monotonic(), received.head
        sent_from = self._source.span_of(received.partition, received.offset)
        staleness = self._state.version - head.base_version
        with span("aggregator.fold", {**update_attributes(head), "staleness": staleness}, parent=sent_from) as folding:
            now, expected, version = self._clock.monotonic(), self._expected(head), self._state.version
            self._state, effects = await self._federation.run(step, self._state, received, now, expected)
        self._waiting.spent(self._clock.monotonic() - begun)
        if any(isinstance(effect, Folded) for effect in effects):
            self._waiting.add(Waiting(received.partition, received.offset, head, folding.parent))
            self._participants.folded(head.client_id, head.base_version, version, now)
            self._speeds.note(head.client_id, head.metrics.get(STEPS_PER_SECOND))
        await self._apply(effects)

    def _expected(self, head: UpdateHead) -> Expected:
        """What the version shall be that this update may open."""
        if (size := self._source.version_size()) is not None:
            return Expected(size)
        return self._participants.expected(head.client_id, head.base_version, self._clock.monotonic())

    async def _apply(self, effects: Sequence[Effect]) -> None:
        """Do what a step asks for."""
        for effect in effects:
            match effect:
                case Folded():
                    pass  # its offset stays held until the version is committed
                case NewVersion():
                    await self._publish(effect)
                case Duplicate(client_id, sequence, partition, offset):
                    identity = {"client_id": client_id, "sequence": sequence}
                    self.publisher.note(
                        self._federation.event(
                            EventKind.UPDATE_DUPLICATE, ROLE, **identity, partition=partition, offset=offset
                        )
                    )
                    self._remind(client_id)
                    # The buffered update itself, read again, still waits for its version at that offset.
                    if not self._waiting.has(client_id, sequence, partition, offset):
                        self._source.release(partition, offset)
                case Refused():
                    if effect.reason is Reason.SEQUENCE_AHEAD:
                        self._remind(effect.head.client_id)
                    self._refuse(effect)

    def _remind(self, client_id: str) -> None:
        """Tell a client that sends what cannot count which sequences of it were folded; the next version may do so."""
        if (window := self._state.window_of(client_id)) is not None:
            self.publisher.remind(client_id, window)

    def _refuse(self, refusal: Refusal | Refused) -> None:
        if refusal.reason in self._usual_refusals:
            self.publisher.drop(refusal)
        else:
            self.publisher.refuse(refusal)
        self._source.release(refusal.partition, refusal.offset)

    async def _publish(self, new: NewVersion, equals: int | None = None) -> None:
        batch = self._waiting.take(new.manifest)
        committed = await self._committing.publish(new, self._state, batch, self._load, equals)
        self._state, self._end = committed.state, committed.end
        if new.parent is not None:
            self._participants.made(self._state.version, self._clock.monotonic())
        fastest = self._speeds.fastest(self._participants.count(self._clock.monotonic()))
        self._load = self._load._replace(pace_seconds=committed.pace_seconds, steps_per_second=fastest)
        self._round = self._clock.monotonic()
        await self._guard()

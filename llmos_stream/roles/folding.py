"""The aggregator's loop, from received updates to committed versions."""

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from time import monotonic, perf_counter
from typing import NamedTuple

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import (
    Duplicate,
    Effect,
    Folded,
    NewVersion,
    Pace,
    Refused,
    State,
    Update,
    device_for,
    next_deadline,
    start,
    step,
    tick,
)
from llmos_stream.errors import StateError
from llmos_stream.roles.chain import Chain
from llmos_stream.roles.control_records import Pointer, Progress, RunEnd
from llmos_stream.roles.ending import Ending
from llmos_stream.roles.events import event, now_ms
from llmos_stream.roles.leadership import Load
from llmos_stream.roles.publisher import ROLE, Outgoing, Publisher
from llmos_stream.roles.recovery import Recovered
from llmos_stream.roles.snapshots import EncodedSnapshot, encode_snapshot
from llmos_stream.roles.source import Source
from llmos_stream.roles.spool import Spools
from llmos_stream.roles.trail import update_attributes
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.runtime.metrics import OWN
from llmos_stream.runtime.tracing import TraceParent, span
from llmos_stream.runtime.vitals import BUFFERED, PAUSED
from llmos_stream.types import Contribution, Event, EventKind, UpdateHead, VersionHead
from llmos_stream.wire import Parts, Refusal

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_FLUSH_SECONDS = 1.0
_FLUSH_RECORDS = 256


def _close(payloads: Sequence[Parts]) -> None:
    for parts in payloads:
        parts.close()  # in a thread: the end of a file may take a while


class _Buffered(NamedTuple):
    """What is remembered of an update until its version: where it begins, and its bytes."""

    partition: int
    offset: int
    payload_bytes: int
    came: TraceParent | None  # the span of its folding


class Folding:
    """State and resources of one running aggregator. Call `begin` or `resume`, then `run`."""

    def __init__(
        self,
        source: Source,
        ending: Ending,
        publisher: Publisher,
        settings: Settings,
        offload: Offload,
        layout: Layout,
    ) -> None:
        self._source = source
        self._ending = ending
        self._publisher = publisher
        self._settings = settings
        self._offload = offload
        self._layout = layout
        self._device = device_for(settings.aggregator.device)
        self._end: RunEnd | None = None  # as committed with the last version
        self._buffered: dict[tuple[str, int], _Buffered] = {}
        self._spools = Spools(settings.wire.memory_bytes, settings.wire.spool_dir)
        self._chain = Chain(settings, layout, self._spools, offload)
        self._places: deque[Pointer] = deque()  # versions that fedasync holds
        self._fold_seconds = 0.0
        self._pace = Pace(settings.aggregator.utilisation)
        self._load = Load()
        self._flushed = monotonic()
        self._paused = False
        self._round: float | None = None  # recovery before the first one may take long
        self._state: State

    def load(self) -> Load | None:
        """How busy this is; None when the loop has not come round for so long that it must hang.

        A transaction that takes longer than that is aborted by the broker anyway.
        """
        if (
            self._round is not None
            and monotonic() - self._round > 2 * self._settings.broker.transaction_timeout_seconds
        ):
            return None
        return self._load

    async def begin(self, weights: Tensor, version: int = 0) -> None:
        """Publish `weights` as the first version of a new federation."""
        self._state = self._start(weights, version)
        moments = {name: tensor.cpu() for name, tensor in self._state.strategy.state_tensors().items()}
        await self._publish(NewVersion(version, None, weights, (), {}, moments))

    async def resume(self, found: Recovered) -> None:
        """Go on from what the log holds."""
        progress = found.progress
        if progress is not None:
            self._ending.resume(progress.started_ms, progress.stop, progress.events)
        await self._source.resume({} if progress is None else progress.intake)
        self._places.extend(found.places)
        self._chain.resume(found.newest.weights, found.residual, found.full)
        self._state = self._resumed(found)

    async def run(self, shutdown: Shutdown, paused: Callable[[], bool] = lambda: False) -> RunEnd | None:
        """Fold until the stop rule fires (returned) or a stop is asked for (None); nothing while it is `paused`."""
        while not self._is_over(shutdown):
            await self._look_round()
            if await self._goes_on(shutdown, paused):
                await self._receive(shutdown, paused)
        if self._end is None:
            await self._publisher.commit(self._source.safe())
        return self._end

    def _is_over(self, shutdown: Shutdown) -> bool:
        return self._end is not None or shutdown.requested

    async def _look_round(self) -> None:
        """What is due however the updates come, also in a pause."""
        self._round = monotonic()
        self._load = self._load._replace(lag=await self._source.lag())
        OWN.behind(self._load.lag)
        BUFFERED.set(len(self._buffered))
        self._end = self._end or await self._observe()
        await self._flush_sometimes()

    async def _goes_on(self, shutdown: Shutdown, paused: Callable[[], bool]) -> bool:
        """Wait while it is paused. False when the run has ended or a stop is asked for."""
        while not self._is_over(shutdown) and self._rests(paused()):
            await self._look_round()
            await shutdown.wait(_POLL_SECONDS)
        return not self._is_over(shutdown)

    def _rests(self, paused: bool) -> bool:
        if paused and not self._paused:
            log.info("paused: nothing is folded until `llmos-stream resume`")
        elif self._paused and not paused:
            log.info("going on after the pause")
            self._source.rested()
        self._paused = paused
        PAUSED.set(paused)
        return paused

    async def _receive(self, shutdown: Shutdown, paused: Callable[[], bool]) -> None:
        """Take what one poll brings. Where a pause comes between, the rest of it waits, and is taken first afterwards.

        Only the next update is decoded meanwhile: the source does nothing until it is asked for another.
        """
        async with aclosing(self._source.receive(self._patience(), self._state.version)) as updates:
            async for received in updates:
                if await self._goes_on(shutdown, paused):
                    await self._take(received)
                del received  # as large as the model, and the next one is on its way
                if self._is_over(shutdown):
                    break  # what is left is held: it is read again
        if await self._goes_on(shutdown, paused):
            await self._tick()

    async def _tick(self) -> None:
        deadline = next_deadline(self._state)
        if deadline is not None and deadline <= monotonic():
            self._state, effects = await self._offload.run(tick, self._state, monotonic())
            await self._apply(effects)

    async def _observe(self) -> RunEnd | None:
        end = await self._ending.observe(self._state.version)
        if end is not None:
            await self._publisher.commit(self._source.safe(), end=end)
        return end

    def _resumed(self, found: Recovered) -> State:
        floor = 0 if found.progress is None else found.progress.floor
        begin = partial(
            self._start, found.newest.weights, found.newest.head.number, found.history, found.sequences, floor
        )
        try:
            return begin(found.moments)
        except StateError as error:
            # Another rule than before, by its operator's choice; damaged sequences would be refused again.
            state = begin()
            log.warning("%s: its moments start anew", error)
            return state

    def _start(
        self,
        weights: Tensor,
        version: int,
        history: Mapping[int, Tensor] | None = None,
        sequences: Mapping[str, Sequence[int]] | None = None,
        floor: int = 0,
        moments: Mapping[str, Tensor] | None = None,
    ) -> State:
        settings = self._settings
        return start(
            weights,
            self._layout.digest,
            version,
            aggregation=settings.aggregation,
            staleness=settings.staleness,
            server_optimizer=settings.server_optimizer,
            history=history,
            moments=moments,
            sequences=sequences,
            floor=floor,
            device=self._device,
        )

    def _patience(self) -> float:
        deadline = next_deadline(self._state)
        return _POLL_SECONDS if deadline is None else min(max(deadline - monotonic(), 0.0), _POLL_SECONDS)

    async def _take(self, received: Update | Refusal) -> None:
        if isinstance(received, Refusal):
            self._refuse(received)
            return
        begun, head = perf_counter(), received.head
        came = self._source.came(received.partition, received.offset)
        staleness = self._state.version - head.base_version
        with span("aggregator.fold", {**update_attributes(head), "staleness": staleness}, parent=came) as folding:
            self._state, effects = await self._offload.run(step, self._state, received, monotonic())
        self._fold_seconds += perf_counter() - begun
        if any(isinstance(effect, Folded) for effect in effects):
            place = _Buffered(received.partition, received.offset, head.payload_size, folding.parent)
            self._buffered[received.head.client_id, received.head.sequence] = place
        await self._apply(effects, received.head)

    async def _apply(self, effects: Sequence[Effect], head: UpdateHead | None = None) -> None:
        """Do what a step asks for; `head` is that of the update it was given."""
        for effect in effects:
            match effect:
                case Folded():
                    pass  # its offset stays held until the version is committed
                case NewVersion():
                    await self._publish(effect)
                case Duplicate(client_id, sequence, partition, offset):
                    identity = {"client_id": client_id, "sequence": sequence}
                    self._publisher.note(
                        event(EventKind.UPDATE_DUPLICATE, ROLE, **identity, partition=partition, offset=offset)
                    )
                    # The buffered update itself, read again, still waits for its version at that offset.
                    waiting = self._buffered.get((client_id, sequence))
                    if waiting is None or waiting[:2] != (partition, offset):
                        self._source.release(partition, offset)
                case Refused(reason, detail, client_id, _, partition, offset):
                    self._refuse(Refusal(reason, detail, head, b"", client_id.encode(), partition, offset))

    def _refuse(self, refusal: Refusal) -> None:
        self._publisher.refuse(refusal)
        self._source.release(refusal.partition, refusal.offset)

    async def _publish(self, new: NewVersion) -> None:
        """The version's span goes on from that of the update which made it due, and is linked to those of all."""
        buffered = (self._buffered[item.client_id, item.sequence] for item in new.manifest)
        came = [update.came for update in buffered if update.came is not None]
        with span("aggregator.version", {"version": new.number}, parent=came[-1] if came else None, links=came):
            await self._commit(new)

    async def _commit(self, new: NewVersion) -> None:
        number, manifest, begun = new.number, new.manifest, perf_counter()
        encoded = await self._chain.encode(new, now_ms())
        await self._offload.run(self._state.adopt, new.weights)
        snapshots: list[EncodedSnapshot] = [] if encoded.residual is None else [encoded.residual]
        for name, tensor in new.moments.items():
            store = self._spools.new()
            snapshots.append(await self._offload.run(encode_snapshot, number, name, tensor, self._layout, store))
        progress = Progress(
            version=number,
            started_ms=self._ending.started_ms,
            events=await self._ending.position(),
            stop=self._ending.learnt(),
            bases=self._places[0].beginning.offset if self._places else None,
            floor=self._state.floor,
            intake=self._source.remember(number),
        )
        events = [self._folded(item, number) for item in manifest]
        events.append(self._published(encoded.head))
        outgoing = Outgoing(encoded, snapshots, new.sequences, progress, events)
        safe = self._source.safe(manifest)
        # The last version by number ends the run in its own transaction, so that no client trains on it in vain.
        self._end = self._ending.at_version(number)
        pointer = await self._publisher.commit(safe, outgoing, self._end)
        self._source.committed(safe, manifest)
        await self._offload.run(_close, [encoded.parts, *(parts for _, parts in snapshots)])
        if pointer is not None:
            self._remember(pointer)
        busy = self._source.take_seconds() + self._fold_seconds + perf_counter() - begun
        self._pace.observe(len(manifest), busy)
        self._load = self._load._replace(pace_seconds=self._pace.interval(len(self._state.sequences)))
        self._fold_seconds = 0.0
        self._flushed = self._round = monotonic()

    def _remember(self, pointer: Pointer) -> None:
        self._chain.committed(pointer)
        if self._settings.aggregation.strategy == "fedasync":
            self._places.append(pointer)
            while self._places and self._places[0].version <= pointer.version - self._settings.staleness.maximum:
                self._places.popleft()

    def _published(self, head: VersionHead) -> Event:
        return event(
            EventKind.VERSION_PUBLISHED,
            ROLE,
            version=head.number,
            parent=head.parent,
            contributions=len(head.manifest),
            payload_bytes=head.payload_size,
            raw_bytes=4 * self._layout.numel,
            fold_seconds=self._fold_seconds,
            mean_staleness=sum(item.staleness for item in head.manifest) / max(len(head.manifest), 1),
            weights_digest=head.weights_digest.hex(),
            lag=self._load.lag,
            pace_seconds=self._load.pace_seconds,
        )

    def _folded(self, item: Contribution, version: int) -> Event:
        buffered = self._buffered.pop((item.client_id, item.sequence))
        return event(
            EventKind.UPDATE_FOLDED,
            ROLE,
            client_id=item.client_id,
            sequence=item.sequence,
            staleness=item.staleness,
            weight=item.weight,
            clip=item.clip,
            num_examples=item.num_examples,
            partition=item.partition,
            offset=item.offset,
            version=version,
            payload_bytes=buffered.payload_bytes,
            raw_bytes=4 * self._layout.numel,
        )

    async def _flush_sometimes(self) -> None:
        """Refusals and repeats do not wait for a version that may be long in coming."""
        due = self._publisher.waiting and monotonic() - self._flushed > _FLUSH_SECONDS
        if due or self._publisher.waiting > _FLUSH_RECORDS:
            safe = self._source.safe()
            await self._publisher.commit(safe)
            self._source.committed(safe)
            self._flushed = monotonic()

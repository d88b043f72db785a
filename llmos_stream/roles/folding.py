"""The aggregator's loop, from received updates to committed versions."""

import logging
from collections.abc import Mapping, Sequence
from time import monotonic, perf_counter
from typing import NamedTuple

from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import (
    Duplicate,
    Effect,
    Folded,
    NewVersion,
    Refused,
    Sequences,
    State,
    Update,
    next_deadline,
    start,
    step,
    tick,
)
from llmos_stream.roles.control import RunEnd
from llmos_stream.roles.ending import Ending
from llmos_stream.roles.events import event, now_ms
from llmos_stream.roles.intake import Intake
from llmos_stream.roles.publisher import ROLE, Publisher
from llmos_stream.roles.versions import Version, encode_version, rule_of
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.types import Contribution, Event, EventKind, UpdateHead
from llmos_stream.wire import Refusal

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25
_FLUSH_SECONDS = 1.0
_FLUSH_RECORDS = 256


class _Buffered(NamedTuple):
    """What is remembered of an update until its version: where it begins, and its bytes."""

    partition: int
    offset: int
    payload_bytes: int


class Folding:
    """State and resources of one running aggregator. Call `begin` or `resume`, then `run`."""

    def __init__(
        self,
        updates: Reader,
        evaluations: Reader,
        publisher: Publisher,
        settings: Settings,
        offload: Offload,
        layout: Layout,
    ) -> None:
        self._updates_topic = updates.partitions[0].topic
        self._publisher = publisher
        self._settings = settings
        self._offload = offload
        self._layout = layout
        self._intake = Intake(updates, layout, settings, offload, lambda: self._state.version)
        self._ending = Ending(settings.stop, evaluations)
        self._end: RunEnd | None = None  # as committed with the last version
        self._buffered: dict[tuple[str, int], _Buffered] = {}
        self._fold_seconds = 0.0
        self._flushed = monotonic()
        self._state: State

    async def begin(self, weights: Tensor) -> None:
        """Publish `weights` as version 0 of a new federation."""
        self._state = self._start(weights, 0)
        await self._publish(0, None, weights, (), {})

    async def resume(self, newest: Version, sequences: Mapping[str, Sequence[int]]) -> None:
        """Go on from `newest`, with the sequences that were seen by then (from `<f>.control`)."""
        await self._intake.resume()
        self._state = self._start(newest.weights, newest.head.number)
        self._state.sequences = Sequences.load(sequences)
        if self._state.strategy.state_tensors():
            log.warning("server_optimizer: its moments are not in the log and start anew")

    async def run(self, shutdown: Shutdown) -> RunEnd | None:
        """Fold until the stop rule fires (returned) or a stop is asked for (None)."""
        end: RunEnd | None = None
        while end is None and not shutdown.requested:
            async for received in self._intake.receive(self._patience()):
                if self._end is None:
                    await self._take(received)
                del received  # as large as the model, and the next one is on its way
            if self._end is None:
                await self._tick()
            end = self._end or await self._observe()
            await self._flush_sometimes()
        if end is None:
            await self._publisher.flush(self._intake.offsets.safe())
        else:
            log.info("the run ends: %s", end.detail)
        return end

    async def _tick(self) -> None:
        deadline = next_deadline(self._state)
        if deadline is not None and deadline <= monotonic():
            self._state, effects = await self._offload.run(tick, self._state, monotonic())
            await self._apply(effects)

    async def _observe(self) -> RunEnd | None:
        end = await self._ending.observe(self._state.version)
        if end is not None:
            await self._publisher.finish(end, self._intake.offsets.safe())
        return end

    def _start(self, weights: Tensor, version: int) -> State:
        settings = self._settings
        return start(
            weights,
            self._layout.digest,
            version,
            aggregation=settings.aggregation,
            staleness=settings.staleness,
            server_optimizer=settings.server_optimizer,
        )

    def _patience(self) -> float:
        deadline = next_deadline(self._state)
        return _POLL_SECONDS if deadline is None else min(max(deadline - monotonic(), 0.0), _POLL_SECONDS)

    async def _take(self, received: Update | Refusal) -> None:
        if isinstance(received, Refusal):
            self._refuse(received)
            return
        begun = perf_counter()
        self._state, effects = await self._offload.run(step, self._state, received, monotonic())
        self._fold_seconds += perf_counter() - begun
        if any(isinstance(effect, Folded) for effect in effects):
            place = _Buffered(received.partition, received.offset, received.head.payload_size)
            self._buffered[received.head.client_id, received.head.sequence] = place
        await self._apply(effects, received.head)

    async def _apply(self, effects: Sequence[Effect], head: UpdateHead | None = None) -> None:
        """Do what a step asks for; `head` is that of the update it was given."""
        for effect in effects:
            match effect:
                case Folded():
                    pass  # its offset stays held until the version is committed
                case NewVersion(number, parent, weights, manifest, sequences):
                    await self._publish(number, parent, weights, manifest, sequences)
                case Duplicate(client_id, sequence, partition, offset):
                    identity = {"client_id": client_id, "sequence": sequence}
                    self._publisher.note(
                        event(EventKind.UPDATE_DUPLICATE, ROLE, **identity, partition=partition, offset=offset)
                    )
                    # The buffered update itself, read again, still waits for its version at that offset.
                    waiting = self._buffered.get((client_id, sequence))
                    if waiting is None or waiting[:2] != (partition, offset):
                        self._intake.offsets.release(TopicPartition(self._updates_topic, partition), offset)
                case Refused(reason, detail, client_id, _, partition, offset):
                    self._refuse(Refusal(reason, detail, head, b"", client_id.encode(), partition, offset))

    def _refuse(self, refusal: Refusal) -> None:
        self._publisher.refuse(refusal)
        self._intake.offsets.release(TopicPartition(self._updates_topic, refusal.partition), refusal.offset)

    async def _publish(
        self,
        number: int,
        parent: int | None,
        weights: Tensor,
        manifest: tuple[Contribution, ...],
        sequences: Mapping[str, Sequence[int] | None],
    ) -> None:
        settings = self._settings
        head, parts = await self._offload.run(
            encode_version,
            number,
            weights,
            self._layout,
            parent=parent,
            manifest=manifest,
            rule=rule_of(settings),
            time_ms=now_ms(),
        )
        settled: dict[TopicPartition, set[int]] = {}
        for item in manifest:
            settled.setdefault(TopicPartition(self._updates_topic, item.partition), set()).add(item.offset)
        offsets = self._intake.offsets
        safe = offsets.safe(settled=settled)
        events = [self._folded(item, number) for item in manifest]
        events.append(
            event(
                EventKind.VERSION_PUBLISHED,
                ROLE,
                version=number,
                parent=parent,
                contributions=len(manifest),
                payload_bytes=head.payload_size,
                raw_bytes=4 * self._layout.numel,
                fold_seconds=self._fold_seconds,
                mean_staleness=sum(item.staleness for item in manifest) / max(len(manifest), 1),
                weights_digest=head.weights_digest.hex(),
            )
        )
        # The last version by number ends the run in its own transaction, so that no client trains on it in vain.
        self._end = self._ending.at_version(number)
        await self._publisher.publish_version(head, parts, events, safe, sequences=sequences, end=self._end)
        offsets.committed(safe, settled)
        self._fold_seconds = 0.0
        self._flushed = monotonic()

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
            safe = self._intake.offsets.safe()
            await self._publisher.flush(safe)
            self._intake.offsets.committed(safe)
            self._flushed = monotonic()

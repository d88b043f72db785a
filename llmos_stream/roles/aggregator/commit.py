"""From a version to its place in the log: its message, and all that commits with it in one transaction."""

import logging
from collections import deque
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.core import NewVersion, Pace, Participants, Refused, Rule, State, release, take_back
from llmos_stream.errors import Rejected
from llmos_stream.log.events import folded_data, published_data
from llmos_stream.log.federation import Federation
from llmos_stream.log.snapshots import EncodedSnapshot, Kept, encode_snapshot
from llmos_stream.log.versions import ROLLED_BACK_TO, rolled_back_to
from llmos_stream.roles.aggregator.leadership import Load
from llmos_stream.roles.aggregator.publisher import ROLE, Outgoing, Publisher
from llmos_stream.roles.aggregator.recovery import Recovered, kept_state
from llmos_stream.roles.aggregator.source import UpdateSource
from llmos_stream.roles.aggregator.stopping import Ending
from llmos_stream.roles.aggregator.version_chain import Chain, Encoded
from llmos_stream.roles.aggregator.waiting import Batch, Waiting
from llmos_stream.storage.spool import Spools
from llmos_stream.telemetry.tracing import span
from llmos_stream.types import Contribution, Event, EventKind, VersionHead, elements_in
from llmos_stream.wire import Parts
from llmos_stream.wire.control import (
    LATEST,
    RUN,
    SEQUENCES,
    STATE,
    Checkpoint,
    Pointer,
    RunEnd,
    dump_running,
    dump_sequences,
    dump_setting,
)

logger = logging.getLogger(__name__)

_FLUSH_SECONDS = 1.0
_FLUSH_RECORDS = 256
_PUBLISHED_KEPT = 64


@dataclass(frozen=True, slots=True, eq=False)
class Committed:
    """What came of a version: the state to go on with, how the run has ended with it, and the clients' new pace."""

    state: State
    end: RunEnd | None
    pace_seconds: float


class Committing:
    """Knows what the next version needs to know of those before it."""

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        rule: Rule,
        layout: Layout,
        source: UpdateSource,
        ending: Ending,
        publisher: Publisher,
        participants: Participants,
    ) -> None:
        self._federation = federation
        self._clock = federation.clock
        self._source = source
        self._ending = ending
        self._publisher = publisher
        self._participants = participants
        self._layout = layout
        self._spools = Spools(federation.wire.memory_bytes, federation.wire.spool_dir)
        self._chain = Chain(settings.versions, rule, layout, self._spools, federation.offload)
        self._published: deque[Pointer] = deque(maxlen=_PUBLISHED_KEPT)
        self._places: deque[Pointer] = deque()  # versions whose weights the strategy holds
        self._places_kept = rule.admitted.maximum if rule.strategy().needs_history else 0
        self._pace = Pace(settings.aggregator.utilisation)
        self._flushed = self._clock.monotonic()
        self._evaluations_moved = 0

    def begin(self, started_from: Mapping[str, object] | None) -> None:
        """Begin with version 0, whose weights are from there."""
        self._chain.begin(started_from)

    def resume(self, found: Recovered) -> None:
        """Go on from the newest version in the log."""
        self._published.append(found.pointer)
        self._publisher.newest = found.pointer, found.checkpoint
        self._places.extend(found.places)
        if found.checkpoint is not None:
            self._evaluations_moved = found.checkpoint.events
        self._chain.resume(found.newest, found.owed, found.pointer.beginning)

    def has_published(self, pointer: Pointer) -> bool:
        """Whether a version of this aggregator is there, as far back as it remembers."""
        return pointer in self._published or (bool(self._published) and pointer.version < self._published[0].version)

    async def write_again(self, keys: Set[bytes], state: State) -> None:
        """Write the control records of the newest version again that lie under these keys."""
        if self._publisher.newest is None:
            return
        pointer, checkpoint = self._publisher.newest
        records: dict[bytes, bytes | None] = {}
        for key in sorted(keys):
            if key == LATEST:
                records[key] = dump_setting(pointer)
            elif key == RUN:
                records[key] = dump_running(pointer.version)
            elif key != STATE:
                client_id = key.removeprefix(SEQUENCES).decode(errors="replace")
                records[key] = dump_sequences(state.window_of(client_id))
            elif checkpoint is not None:
                records[key] = dump_setting(checkpoint)
        await self._publisher.write_control(records)

    async def publish(
        self, new: NewVersion, state: State, batch: Batch, load: Load, equals: int | None = None
    ) -> Committed:
        """Commit a version that `state` has come to with `batch`. `load` is how busy this was known to be before.

        `equals` is the older version that it goes back to, if it does.

        Its span goes on from that of the update which made it due, and is linked to those of all.
        """
        spans = [update.span for update in batch.updates if update.span is not None]
        with span("aggregator.version", {"version": new.number}, parent=spans[-1] if spans else None, links=spans):
            return await self._publish(new, state, batch, load, equals)

    async def flush_sometimes(self) -> None:
        """Refusals and repeats do not wait for a version that may be long in coming."""
        due = self._publisher.waiting and self._clock.monotonic() - self._flushed > _FLUSH_SECONDS
        if due or self._publisher.waiting > _FLUSH_RECORDS:
            offsets = self._source.committable_offsets()
            await self._publisher.commit(offsets)
            self._source.committed(offsets)
            self._flushed = self._clock.monotonic()

    async def _publish(self, new: NewVersion, state: State, batch: Batch, load: Load, equals: int | None) -> Committed:
        number, manifest, begun = new.number, new.manifest, self._clock.monotonic()
        parent, full = self._chain.newest
        encoded = await self._chain.encode(new, self._clock.time_ms(), equals)
        if parent is not None and equals is None:
            try:
                await self._federation.run(state.pipeline.guard, parent, encoded.weights, self._layout.tensors)
            except Rejected as unsafe:
                encoded.parts.close()
                return await self._take_back(new, state, batch, unsafe, (parent, full))
        del parent  # as large as the model, and done with
        state = await self._federation.run(release, state, encoded.weights)
        snapshots = await self._snapshots(new, encoded)
        events = [self._folded_event(*pair, number) for pair in zip(manifest, batch.updates, strict=True)]
        events.append(self._published_event(encoded.head, batch, load))
        checkpoint = await self._checkpoint(number, state)
        outgoing = Outgoing(encoded, snapshots, new.sequences, checkpoint, events)
        offsets = self._source.committable_offsets(manifest)
        # The last version by number ends the run in its own transaction, so that no client trains on it in vain.
        end = self._ending.at_version(number)
        pointer = await self._publisher.commit(offsets, outgoing, end)
        self._source.committed(offsets, manifest)
        await self._federation.run(_close, [encoded.parts, *(parts for _, parts in snapshots)])
        if pointer is not None:
            self._keep_place(encoded.head, pointer)
        busy = self._source.take_busy_seconds() + batch.fold_seconds + self._clock.monotonic() - begun
        self._pace.observe(len(manifest), busy)
        self._flushed = self._clock.monotonic()
        return Committed(state, end, self._pace_seconds())

    async def _take_back(
        self, new: NewVersion, state: State, batch: Batch, unsafe: Rejected, before: tuple[Tensor, Pointer | None]
    ) -> Committed:
        """Do not publish a version, refuse what it was made of, and go on from the one before."""
        why = f"version {new.number} is not published: {unsafe.detail}"
        logger.error("%s", why)
        for update in batch.updates:
            self._publisher.refuse(Refused(unsafe.reason, why, update.head, update.partition, update.offset))
            self._source.release(update.partition, update.offset)
        checkpoint = None if self._publisher.newest is None else self._publisher.newest[1]
        kept = Kept({}, {}) if checkpoint is None else await kept_state(self._federation, checkpoint, self._layout)
        weights, full = before
        self._chain.take_back(weights, kept.owed, full)
        state = await self._federation.run(take_back, state, weights, kept.moments, new.range)
        offsets = self._source.committable_offsets()
        await self._publisher.commit(offsets)
        self._source.committed(offsets)
        self._flushed = self._clock.monotonic()
        return Committed(state, None, self._pace_seconds())

    def _pace_seconds(self) -> float:
        return self._pace.interval(self._participants.count(self._clock.monotonic()))

    async def _snapshots(self, new: NewVersion, encoded: Encoded) -> list[EncodedSnapshot]:
        found = list(encoded.residuals)
        for name, tensor in new.moments.items():
            store = self._spools.new()
            found.append(await self._federation.run(encode_snapshot, new.number, name, tensor, self._layout, store))
        return found

    async def _checkpoint(self, number: int, state: State) -> Checkpoint:
        return Checkpoint(
            version=number,
            started_ms=self._ending.started_ms,
            events=self._evaluations_moved,
            evaluations=await self._ending.position(),
            stop=self._ending.learnt(),
            bases=self._places[0].beginning.offset if self._places else None,
            floor=state.floor,
            limits=state.dump_limits(),
            intake=self._source.checkpoint(number),
        )

    def _keep_place(self, head: VersionHead, pointer: Pointer) -> None:
        self._published.append(pointer)
        self._chain.committed(head, pointer)
        if self._places_kept:
            self._places.append(pointer)
            while self._places and self._places[0].version <= pointer.version - self._places_kept:
                self._places.popleft()

    def _published_event(self, head: VersionHead, batch: Batch, load: Load) -> Event:
        return self._federation.event(
            EventKind.VERSION_PUBLISHED,
            ROLE,
            **published_data(head),
            raw_bytes=4 * elements_in(head, self._layout.numel),
            fold_seconds=batch.fold_seconds,
            mean_staleness=sum(item.staleness for item in head.manifest) / max(len(head.manifest), 1),
            weights_digest=head.weights_digest.hex(),
            lag=load.lag,
            pace_seconds=load.pace_seconds,
            **({} if (equals := rolled_back_to(head)) is None else {ROLLED_BACK_TO: equals}),
        )

    def _folded_event(self, item: Contribution, update: Waiting, version: int) -> Event:
        return self._federation.event(
            EventKind.UPDATE_FOLDED,
            ROLE,
            **folded_data(item, version),
            payload_bytes=update.head.payload_size,
            raw_bytes=4 * elements_in(update.head, self._layout.numel),
        )


def _close(payloads: Sequence[Parts]) -> None:
    for parts in payloads:
        parts.close()  # in a thread: the end of a file may take a while

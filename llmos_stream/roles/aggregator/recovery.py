"""What an aggregator finds in the log when it starts: the newest version and the state that belongs to it.

The pointers in `<f>.control` lead to each piece, so the time this takes depends on the size of the model
and not on the length of the history (a strategy that needs past versions has `aggregation.history` of them read back).
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from llmos_stream.broker import TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.core import Rule, State, start
from llmos_stream.errors import OffsetGone, Rejected, StateError
from llmos_stream.log.admission import head_of
from llmos_stream.log.control import ControlView
from llmos_stream.log.federation import Federation
from llmos_stream.log.index import version_index
from llmos_stream.log.replica import Follower, take_message
from llmos_stream.log.snapshots import Kept, Owed, fetch_snapshots
from llmos_stream.log.standing import LocatedVersion, Standing, pointer_to
from llmos_stream.log.stream import MessageStream, foreign
from llmos_stream.log.versions import Version, version_assembler
from llmos_stream.log.visibility import await_visible
from llmos_stream.runtime.logs import Sparing
from llmos_stream.types import VersionHead
from llmos_stream.wire.control import Checkpoint, Pointer

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())

_FETCH_SECONDS = 600.0


class Found(NamedTuple):
    """The newest version: where it is, the layout of the model, and its rule."""

    pointer: Pointer
    layout: Layout
    rule: Mapping[str, object]


@dataclass(frozen=True, slots=True, eq=False)
class Recovered:
    """The newest version, where it is, and the state to go on from.

    moments: the server optimiser's, by name. owed: what readers are owed. history: weights of past versions
    that the strategy needs, and in `places` where those lie in `<f>.models` that the next version may still need.
    """

    newest: Version
    pointer: Pointer
    checkpoint: Checkpoint | None
    sequences: Mapping[str, Sequence[int]]
    moments: Mapping[str, Tensor] = field(default_factory=dict)
    owed: Owed = field(default_factory=dict)
    history: Mapping[int, Tensor] = field(default_factory=dict)
    places: Sequence[Pointer] = ()


async def fetch_version(federation: Federation, pointer: Pointer) -> Version:
    """The version that `pointer` names."""
    async with federation.reader(federation.topics.models, "latest", check_crcs=False) as reader:
        return await federation.replica(reader).move_to(pointer, _FETCH_SECONDS)


async def find_newest(federation: Federation, control: ControlView) -> Found | None:
    """The newest version of the run, by its heads; None in a new federation.

    What `control` points to counts where a version of this run is there. Else the log itself is asked, which lists all.
    """
    control.disown_unkept()
    await _await_newest(federation, control)
    async with version_index(federation.broker, federation.topics.models) as index:
        if not control.begun and await index.pointer() is None:
            return None
        while (pointer := control.latest) is not None:
            try:
                return _found(await index.chain(pointer))
            except (OffsetGone, Rejected) as error:
                control.disown(pointer, str(error))
        logger.error("no version is where %s says: going on from the newest in the log", federation.topics.control)
        newest = await index.pointer()
        return None if newest is None else _found(await index.chain(newest))


async def _await_newest(federation: Federation, control: ControlView) -> None:
    """Wait until the newest version is seen, or one that is there takes its place.

    A leader that went on without it would make a second version of the same number.
    """
    begun = federation.clock.monotonic()
    async with federation.reader(federation.topics.models, "latest") as reader:
        while (pointer := control.latest) is not None:
            try:
                await await_visible(reader, pointer, federation.clock, begun, _FETCH_SECONDS)
                break
            except Rejected as error:
                control.disown(pointer, str(error))


def _found(chain: Sequence[LocatedVersion]) -> Found:
    full = chain[0].head
    return Found(pointer_to(chain), Layout.from_specs(full.tensors or (), full.tied), chain[-1].head.rule)


async def recover(
    federation: Federation, rule: Rule, control: ControlView, pointer: Pointer, newest: Version
) -> Recovered:
    """What was committed with `newest`, the version at `pointer`. `control` gives its sequences away."""
    sequences, checkpoint = control.drop_sequences(), control.checkpoint_of(newest.head.number)
    if checkpoint is None:
        logger.warning(
            "the log holds no state for version %d: the stop rule and moments start anew", newest.head.number
        )
        return Recovered(newest, pointer, None, sequences)
    if checkpoint.evaluations is None:
        checkpoint = await _with_evaluations_apart(federation, checkpoint)
    moments, owed = await kept_state(federation, checkpoint, newest.layout)
    found = Recovered(newest, pointer, checkpoint, sequences, moments, owed)
    if not rule.strategy().needs_history:
        return found
    # A version that nothing older is needed with was committed before its own place was known.
    bases = pointer.beginning.offset if checkpoint.bases is None else checkpoint.bases
    return await _with_history(federation, rule.admitted.maximum, found, bases)


async def _with_evaluations_apart(federation: Federation, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint of an older release: evaluations came with the events until now, and come by their own topic."""
    events = federation.topics.events
    logger.warning(
        "evaluations come by %s from now on; an evaluator of an older release is not heard",
        federation.topics.evaluations,
    )
    async with federation.reader(events, "latest") as reader:
        return replace(checkpoint, events=await reader.position(TopicPartition(events, 0)), evaluations=0)


async def kept_state(federation: Federation, checkpoint: Checkpoint, layout: Layout) -> Kept:
    """The moments and the residuals that were committed with a checkpoint, as far as retention has left them."""
    if not checkpoint.snapshots:
        return Kept({}, {})
    try:
        async with federation.reader(federation.topics.snapshots, "latest", check_crcs=False) as reader:
            return await fetch_snapshots(
                federation, reader, checkpoint.snapshots, checkpoint.version, layout, _FETCH_SECONDS
            )
    except OffsetGone as error:
        logger.error("topics.snapshots_retention_gib: too little, the state at the newest version is gone (%s)", error)
    except Rejected as error:
        logger.error("the state at the newest version cannot be read: moments start anew (%s)", error)
    return Kept({}, {})


async def _with_history(federation: Federation, most_stale: int, found: Recovered, bases: int) -> Recovered:
    """`found`, with the past versions that an update may still name. Those that retention deleted are left out."""
    present = found.newest.head.number
    oldest = present - most_stale
    history: dict[int, Tensor] = {}
    places: list[Pointer] = []
    at = TopicPartition(federation.topics.models, 0)
    follower, standing = Follower(), Standing()
    async with federation.reader(federation.topics.models, check_crcs=False) as reader:
        begin = await reader.position(at)
        if begin > bases:
            logger.warning("retention has deleted versions before offset %d: updates on them may be refused", begin)
        reader.seek(at, max(begin, bases))
        async for message in MessageStream(reader, version_assembler(federation.wire)).to_end():
            head = head_of(VersionHead, message)
            number, place = head.number, standing.pointer(head, message.partition, message.first_offset)
            try:
                version = await federation.run(take_message, follower, message)
            except Rejected as error:
                foreign(federation.topics.models, message.first_offset, error.detail)
                continue
            if version is None or place is None:
                continue
            if oldest < number <= present:
                places.append(place)
            if oldest <= number < present:
                history[number] = version.weights.clone()
    return replace(found, history=history, places=places)


def resumed_state(rule: Rule, device: torch.device, layout: Layout, found: Recovered) -> State:
    """The state to go on from."""
    floor = 0 if found.checkpoint is None else found.checkpoint.floor
    begin = partial(
        start,
        found.newest.weights,
        layout.digest,
        found.newest.head.number,
        rule=rule,
        history=found.history,
        sequences=found.sequences,
        floor=floor,
        buffers=layout.buffers,
        fragments=layout.fragments(rule.aggregation.fragments),
        device=device,
    )
    try:
        state = begin(moments=found.moments)
    except StateError as error:
        # Another rule than before, by its operator's choice.
        state = begin()
        logger.warning("%s: its moments start anew", error)
    if found.checkpoint is not None:
        state.load_limits(found.checkpoint.limits)
    return state

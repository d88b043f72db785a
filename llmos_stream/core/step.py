"""The aggregation as a transition function: state, update and time in, state and effects out.

The result depends on nothing else: the same updates in the same order give the same bytes, whatever
the number of threads. An update is validated completely before anything changes, so that a refused
one or a duplicate leaves the state bit for bit as it was (a delta that is decoded while it is walked through is
walked through for that: see `delta.Delta`). The state given is consumed (see `state.State`).
"""

import math

from llmos_stream.core.client_sequences import check_sequence
from llmos_stream.core.effects import Duplicate, Effect, Folded, NewVersion, Refused
from llmos_stream.core.participants import MOST, Expected
from llmos_stream.core.pipeline import Pipeline
from llmos_stream.core.state import State
from llmos_stream.core.validate import Update
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Contribution, UpdateHead

_MANY = Expected(MOST)


def step(state: State, update: Update, now: float, expected: Expected = _MANY) -> tuple[State, tuple[Effect, ...]]:
    """Fold one update at time `now` (seconds, of any clock that does not go back).

    Where `aggregation.buffer_size` is unset, an update that opens the buffer begins a version as it is `expected` (see
    `participants`).

    Effects: one of Duplicate and Refused; or Folded, followed by NewVersion if it filled the buffer or
    the deadline has come. Staleness is counted from the base version that the update names to the
    global version at this moment. Raises ValueError for a delta that is no flat vector.
    """
    head = update.head
    if state.sequences.seen(head.client_id, head.sequence):
        return state, (Duplicate(head.client_id, head.sequence, update.partition, update.offset),)
    try:
        contribution = _contribution(state, update, expected)
    except Rejected as rejected:
        return state, (Refused(rejected.reason, rejected.detail, head, update.partition, update.offset),)
    pipeline = state.pipeline_of(head)
    pipeline.fold(contribution, update.delta, now, update.buffers)
    pipeline.note(contribution, head.base_version)
    state.sequences.add(head.client_id, head.sequence, state.version)
    folded = Folded(contribution)
    return state, (folded, _publish(state, pipeline)) if pipeline.due(now) else (folded,)


def tick(state: State, now: float) -> tuple[State, tuple[Effect, ...]]:
    """Let time pass: NewVersion if the deadline of a buffer that is not empty has come, else no effect.

    Of several fragments that are due, the one whose deadline came first moves; another call moves the next.
    """
    due = [pipeline for pipeline in state.pipelines if pipeline.due(now) or _is_overdue(state, pipeline)]
    if not due:
        return state, ()
    return state, (_publish(state, min(due, key=lambda pipeline: _deadline(state, pipeline) or -math.inf)),)


def next_deadline(state: State) -> float | None:
    """When `tick` has something to do, on the clock of `now`; None while it has nothing to wait for."""
    deadlines = (_deadline(state, pipeline) for pipeline in state.pipelines)
    return min((deadline for deadline in deadlines if deadline is not None), default=None)


def _deadline(state: State, pipeline: Pipeline) -> float | None:
    return -math.inf if _is_overdue(state, pipeline) else pipeline.deadline()


def _is_overdue(state: State, pipeline: Pipeline) -> bool:
    fragments = len(state.pipelines)
    return fragments > 1 and pipeline.is_overdue(state.version, fragments)


def _staleness(state: State, pipeline: Pipeline, head: UpdateHead) -> int:
    tau = pipeline.admit(head, state.version, state.layout_digest)
    if head.base_version < state.floor:
        raise Rejected(
            Reason.TOO_STALE,
            f"base version {head.base_version}: what was folded before version {state.floor} is forgotten by now",
        )
    pipeline.check_base(head.base_version)
    return tau


def _contribution(state: State, update: Update, expected: Expected) -> Contribution:
    head, pipeline = update.head, state.pipeline_of(update.head)
    tau = _staleness(state, pipeline, head)
    pipeline.check_turn(head.client_id)
    check_sequence(head.sequence, state.sequences.of(head.client_id))
    clip = pipeline.check(update.delta, update.buffers, state.weights)
    if state.adapts and not pipeline.pending():  # nothing is refused any more
        pipeline.expect(*expected)
    num_examples = pipeline.limits.counted(head.num_examples)
    return Contribution(
        client_id=head.client_id,
        sequence=head.sequence,
        partition=update.partition,
        offset=update.offset,
        num_examples=num_examples,
        staleness=tau,
        weight=pipeline.weigh(num_examples, tau),
        clip=clip,
        payload_digest=head.payload_digest,
        steps=pipeline.steps_of(head),
    )


def _publish(state: State, pipeline: Pipeline) -> NewVersion:
    parent, limits = state.version, pipeline.limits.record()
    buffer_size = pipeline.capacity if state.adapts else None
    state.weights, manifest = pipeline.flush(parent, state.weights)
    state.version = parent + 1
    # It never falls, whatever becomes of staleness.maximum in later runs: what is forgotten stays forgotten.
    oldest = state.version - state.rule.admitted.maximum
    state.floor = max(state.floor, oldest, state.sequences.overflow())
    forgotten = state.sequences.forget_before(state.floor)
    sequences: dict[str, list[int] | None] = dict.fromkeys(forgotten)
    # One that this very version made old is forgotten already.
    kept = {item.client_id for item in manifest} - sequences.keys()
    sequences |= {client_id: state.window_of(client_id) for client_id in sorted(kept)}
    # On the CPU these are the tensors themselves; a GPU gives them up in one copy a version.
    moments = {name: tensor.cpu() for name, tensor in pipeline.state_tensors().items()}
    weights = state.weights.cpu()
    return NewVersion(state.version, parent, weights, manifest, sequences, moments, limits, buffer_size, pipeline.range)

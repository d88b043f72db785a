"""The state of the aggregation: where it starts, what it holds, and what a snapshot of it must name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core.dedup import Sequences
from llmos_stream.core.flat import require_flat
from llmos_stream.core.strategy import Strategy, make_strategy
from llmos_stream.errors import StateError


@dataclass(slots=True, eq=False)
class State:
    """Everything the next step depends on, besides the update and the time.

    Linear: a step consumes the state it is given and returns the one to go on with, because moments
    and the accumulator are updated in place. `weights` is the flat vector of `version` and is never
    written to: each version gets a tensor of its own. Two tensors used in turn would save an
    allocation, but the second version after this one would overwrite it while it is still being
    encoded; and fedasync has to keep old versions as they were. With fedbuff the accumulator itself
    becomes the new weights, so that a version costs no copy.
    """

    version: int
    weights: Tensor
    layout_digest: bytes
    aggregation: AggregationSettings
    staleness: StalenessSettings
    strategy: Strategy
    sequences: Sequences = field(default_factory=Sequences)


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """What the log alone does not give back: the sequences seen and the server optimiser's moments.

    `tensors` are the live ones: write them out before the next step. `sequences` is plain data.
    """

    version: int
    sequences: Mapping[str, Sequence[int]]
    tensors: Mapping[str, Tensor]


def start(
    weights: Tensor,
    layout_digest: bytes,
    version: int = 0,
    *,
    aggregation: AggregationSettings | None = None,
    staleness: StalenessSettings | None = None,
    server_optimizer: ServerOptimizerSettings | None = None,
    history: Mapping[int, Tensor] | None = None,
    snapshot: Snapshot | None = None,
) -> State:
    """The state at `version`, with an empty buffer.

    `weights` (flat) is not copied and must not be written to afterwards. `history` gives fedasync
    the weights of earlier versions, read back from the log; without it, updates on those bases are
    refused. Settings left out take their defaults.

    Raises ValueError for weights that are no flat vector or empty, StateError for a snapshot of
    another version, rule or model, ConfigError for settings that float32 cannot hold.
    """
    require_flat(weights)
    if not weights.numel() or version < 0:
        raise ValueError("a version is 0 or more and has at least one weight")
    aggregation = aggregation or AggregationSettings()
    staleness = staleness or StalenessSettings()
    optimizer = server_optimizer or ServerOptimizerSettings()
    strategy = make_strategy(version, weights, aggregation, staleness, optimizer, history=history)
    state = State(version, weights, layout_digest, aggregation, staleness, strategy)
    if snapshot is not None:
        if snapshot.version != version:
            raise StateError(f"a snapshot of version {snapshot.version} does not belong to version {version}")
        strategy.load(snapshot.tensors)
        state.sequences = Sequences.load(snapshot.sequences)
    return state


def snapshot_of(state: State) -> Snapshot:
    """A snapshot, to be taken right after a version.

    Raises ValueError while updates are buffered: their sequences would count as seen, but the buffer
    is not in the snapshot, so that they would be lost.
    """
    if state.strategy.pending():
        raise ValueError("a snapshot is taken when the buffer is empty, right after a version")
    return Snapshot(state.version, state.sequences.dump(), state.strategy.state_tensors())

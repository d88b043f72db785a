"""The state of the aggregation: what it holds, and where it starts, afresh or from what the log has kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmos_stream.core.dedup import Sequences
from llmos_stream.core.flat import require_flat
from llmos_stream.core.pipeline import Pipeline
from llmos_stream.core.rule import Rule
from llmos_stream.types import TensorSpec


@dataclass(slots=True, eq=False)
class State:
    """Everything the next step depends on, besides the update and the time.

    Linear: a step consumes the state it is given and returns the one to go on with, because moments
    and the accumulator are updated in place. `weights` is the flat vector of `version` and is never
    written to: each version gets a tensor of its own. Two tensors used in turn would save an
    allocation, but the second version after this one would overwrite it while it is still being
    encoded; and a strategy that needs history has to keep old versions as they were. A running sum itself
    becomes the new weights, so that a version costs no copy.

    Where a GPU folds, `weights`, the accumulator, moments and history lie there.
    """

    version: int
    weights: Tensor
    layout_digest: bytes
    rule: Rule
    pipeline: Pipeline
    sequences: Sequences = field(default_factory=Sequences)
    floor: int = 0
    """The oldest base version that an update may name: repeats of older ones are not known any more."""

    @property
    def adapts(self) -> bool:
        """Whether versions are made of as many updates as clients take part, where the caller of `step` says so."""
        return self.rule.aggregation.buffer_size is None and self.pipeline.strategy.adapts


def release(state: State, weights: Tensor) -> State:
    """Go on from `weights`: what readers have of the newest `NewVersion`, whose tensor it may be, written over.

    On the CPU that is where they are; elsewhere they are copied there. Raises ValueError for weights of another model.
    """
    require_flat(weights, state.weights.numel())
    if state.weights is not weights:
        state.weights.copy_(weights)
    return state


def take_back(state: State, weights: Tensor, moments: Mapping[str, Tensor]) -> State:
    """Go on from the version before the newest one, which is not published: from `weights`, which readers have.

    `moments` are those of that version; where they are gone, the server optimiser starts anew. What was folded since is
    forgotten, except that it was seen.
    """
    state.version -= 1
    state.weights = weights.to(state.weights.device)
    history, buffers = state.pipeline.history, state.pipeline.buffers
    state.pipeline = state.rule.pipeline(state.version, state.weights, history, buffers)
    if moments.keys() == state.pipeline.state_tensors().keys():
        state.pipeline.load(moments)
    return state


def start(
    weights: Tensor,
    layout_digest: bytes,
    version: int = 0,
    *,
    rule: Rule | None = None,
    history: Mapping[int, Tensor] | None = None,
    moments: Mapping[str, Tensor] | None = None,
    sequences: Mapping[str, Sequence[int]] | None = None,
    floor: int = 0,
    buffers: Sequence[TensorSpec] = (),
    device: torch.device | str = "cpu",
) -> State:
    """The state at `version`, with an empty buffer.

    `weights` (flat) is not copied and must not be written to afterwards. `history` gives a strategy that needs
    it the weights of earlier versions, read back from the log; without it, updates on those bases are
    refused. `moments` (copied) and `sequences` are what `NewVersion` said must be remembered with
    this version; without them the server optimiser starts anew and no update counts as seen. `floor` is
    that of the state that is gone on with. The end of the weights is `buffers`. All is folded on `device`; the versions
    are the same bit for bit, since a GPU rounds these operations as a CPU does (see `flat`).

    Raises ValueError for weights that are no flat vector or empty, StateError for moments of another
    rule or model and for damaged sequences, ConfigError for settings that float32 cannot hold.
    """
    require_flat(weights)
    if not weights.numel() or version < 0:
        raise ValueError("a version is 0 or more and has at least one weight")
    rule, weights = rule or Rule(), weights.to(device)
    pipeline = rule.pipeline(version, weights, history, buffers)
    state = State(version, weights, layout_digest, rule, pipeline, floor=floor)
    if moments is not None:
        pipeline.load(moments)
    if sequences is not None:
        state.sequences = Sequences.load(sequences)
    return state

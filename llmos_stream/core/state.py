"""The state of the aggregation: what it holds, and where it starts, afresh or from what the log has kept."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llmos_stream.core.dedup import Sequences
from llmos_stream.core.flat import require_flat
from llmos_stream.core.pipeline import Pipeline, pipeline_of
from llmos_stream.core.rule import Rule
from llmos_stream.types import Fragment, TensorSpec, UpdateHead


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
    pipelines: tuple[Pipeline, ...]
    """One for each fragment of the model, in the order of the flat vector; one in all where it is not cut."""
    sequences: Sequences = field(default_factory=Sequences)
    floor: int = 0
    """The oldest base version that an update may name: repeats of older ones are not known any more."""

    @property
    def pipeline(self) -> Pipeline:
        """The first one: it knows what all have in common, which are the stages and the moments."""
        return self.pipelines[0]

    def pipeline_of(self, head: UpdateHead) -> Pipeline:
        """The one that folds an update. Raises Rejected(WRONG_LAYOUT) for a range that moves nowhere."""
        return pipeline_of(self.pipelines, head.range)

    @property
    def pending(self) -> int:
        """How many updates wait."""
        return sum(pipeline.pending() for pipeline in self.pipelines)

    def window_of(self, client_id: str) -> list[int] | None:
        """What must be remembered of a client's sequences with the newest version: updates that wait are not in it.

        After a restart they are read and folded again. None for a client that has none.
        """
        window = self.sequences.of(client_id)
        waiting = [sequence for pipeline in self.pipelines for sequence in pipeline.sequences_of(client_id)]
        kept = None if window is None else window.without(waiting)
        return None if kept is None else kept.dump()

    def dump_limits(self) -> dict[str, object]:
        """What its limits come from (see `Limits.dump`), of fragments by their place."""
        if len(self.pipelines) == 1:
            return {**self.pipeline.limits.dump()}
        return {str(place): pipeline.limits.dump() for place, pipeline in enumerate(self.pipelines)}

    def load_limits(self, dumped: Mapping[str, object]) -> None:
        """Go on from what `dump_limits` gave; what is none of it is left out."""
        if len(self.pipelines) == 1:
            self.pipeline.limits.load(dumped)
            return
        for place, pipeline in enumerate(self.pipelines):
            if isinstance(its := dumped.get(str(place)), Mapping):
                pipeline.limits.load(its)

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


def take_back(
    state: State, weights: Tensor, moments: Mapping[str, Tensor], moved: tuple[int, int] | None = None
) -> State:
    """Go on from the version before the newest one, which is not published: from `weights`, which readers have.

    `moments` are those of that version; where they are gone, the server optimiser starts anew. What was folded into the
    range that it has `moved` is forgotten, except that it was seen.
    """
    state.version -= 1
    state.weights = weights.to(state.weights.device)
    place, fresh = state.pipelines.index(pipeline_of(state.pipelines, moved)), _fresh(state)
    for pipeline in state.pipelines:
        pipeline.optimizer = fresh[place].optimizer
    state.pipelines = (*state.pipelines[:place], fresh[place], *state.pipelines[place + 1 :])
    if moments.keys() == state.pipeline.state_tensors().keys():
        state.pipeline.load(moments)
    return state


def _fresh(state: State) -> tuple[Pipeline, ...]:
    """Pipelines like those that there are, where nothing waits."""
    fragments = [pipeline.fragment for pipeline in state.pipelines if pipeline.fragment is not None]
    history, buffers = state.pipeline.history, state.pipelines[-1].buffers
    return state.rule.pipelines(state.version, state.weights, history, buffers, fragments)


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
    fragments: Sequence[Fragment] = (),
    device: torch.device | str = "cpu",
) -> State:
    """The state at `version`, with an empty buffer.

    `weights` (flat) is not copied and must not be written to afterwards. `history` gives a strategy that needs
    it the weights of earlier versions, read back from the log; without it, updates on those bases are
    refused. `moments` (copied) and `sequences` are what `NewVersion` said must be remembered with
    this version; without them the server optimiser starts anew and no update counts as seen. `floor` is
    that of the state that is gone on with. The end of the weights is `buffers`. `fragments` are all stretches that they
    are cut into, where the rule says so. All is folded on `device`; the versions are the same bit for bit, since a GPU
    rounds these operations as a CPU does (see `flat`).

    Raises ValueError for weights that are no flat vector or empty, StateError for moments of another
    rule or model and for damaged sequences, ConfigError for settings that float32 cannot hold.
    """
    require_flat(weights)
    if not weights.numel() or version < 0:
        raise ValueError("a version is 0 or more and has at least one weight")
    rule, weights = rule or Rule(), weights.to(device)
    pipelines = rule.pipelines(version, weights, history, buffers, fragments if len(fragments) > 1 else ())
    state = State(version, weights, layout_digest, rule, pipelines, floor=floor)
    if moments is not None:
        state.pipeline.load(moments)
    if sequences is not None:
        state.sequences = Sequences.load(sequences)
    return state

"""From accepted updates to a version: one pipeline of stages, each of which may be replaced.

    admit      a head, before its payload is looked at               `Stages.admit`
    check      that a delta is finite and fits; its clip factor      `Stages.check`
    weigh      the update's weight                                   the strategy
    combine    all updates of a version into one vector              the strategy
    privatise  that vector                                           `Stages.privatise`
    apply      it to the weights                                     the server optimiser
    guard      what readers would have of a version                  `Stages.guard`

Parameters go through all of them, buffers through none but the check, weights and a mean of their own (see `buffers`).

Where a model is cut into fragments (Streaming DiLoCo, Douillard et al. 2025), each has a pipeline of its own, which
sees its range of the flat vector and nothing else.

The pipeline may be driven by `step`, or by a replay that takes each contribution from a manifest.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core.buffer import Buffer, Quorum
from llmos_stream.core.buffers import BufferMean, check_buffers, within
from llmos_stream.core.delta import Delta, as_delta
from llmos_stream.core.flat import divisor, require_flat
from llmos_stream.core.fragments import moves_nowhere
from llmos_stream.core.guard import check_version
from llmos_stream.core.held import Held
from llmos_stream.core.limits import Limits
from llmos_stream.core.optimizer import ServerOptimizer
from llmos_stream.core.running_sum import RunningSum
from llmos_stream.core.staleness import Discount, discounted
from llmos_stream.core.strategy import Strategy, Stretch
from llmos_stream.core.validate import check_and_clip, check_head
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.types import LOCAL_STEPS, Contribution, Fragment, TensorSpec, UpdateHead

MOST_STEPS = 1e9
"""Nobody makes more local steps for an update."""


@dataclass(frozen=True, slots=True, eq=False)
class Combined:
    """What a strategy made of the updates of one version: `vector / divisor`, or `vector` where there is none.

    The vector is the holder's to overwrite. Dividing is left to whoever passes through it next anyway.
    """

    vector: Tensor
    divisor: float | None


def _as_it_is(combined: Combined) -> Combined:
    return combined


@dataclass(frozen=True, slots=True, eq=False)
class Stages:
    """The stages that neither the strategy nor the server optimiser has.

    admit and check raise Rejected for an update that must not be folded; guard does for weights that must not become a
    version.
    """

    admit: Callable[..., int] = check_head
    check: Callable[[Tensor | Delta, int, float | None], float] = check_and_clip
    privatise: Callable[[Combined], Combined] = _as_it_is
    guard: Callable[[Tensor, Tensor, Sequence[TensorSpec], float | None], None] = check_version


class Pipeline:
    """The stages of one rule, with what waits to become a version and what is remembered from one to the next.

    Everything lies on `device`, as weights and moments must. `history` maps versions to their weights, where the
    strategy needs them; the caller may change it between two versions. The end of the weights is `buffers`.

    With a `fragment` all this is of its range alone, except that weights are given and returned whole, and that moments
    are those of the whole model.
    """

    def __init__(
        self,
        strategy: Strategy,
        discount: Discount,
        optimizer: ServerOptimizer | None,
        aggregation: AggregationSettings,
        staleness: StalenessSettings,
        device: torch.device,
        stages: Stages | None = None,
        buffers: Sequence[TensorSpec] = (),
        fragment: Fragment | None = None,
    ) -> None:
        self.strategy = strategy
        self.fragment = fragment
        self.stages = stages or Stages()
        self.history: dict[int, Tensor] = {}
        self.optimizer = optimizer
        self._discount = discount
        self._aggregation = aggregation
        self._staleness = staleness
        self._device = device
        exactly = strategy.contributions_per_version
        deadline = aggregation.deadline_seconds if exactly is None else None
        quorum = None
        if exactly is None and aggregation.quorum is not None:
            quorum = Quorum(aggregation.quorum, aggregation.grace_seconds)
        self._buffer = Buffer(capacity_of(strategy), deadline, strategy.least, quorum)
        self.buffers = buffers
        self._behind = sum(spec.numel for spec in buffers)
        self._sum = RunningSum(device, self._behind)
        self._mean = BufferMean()
        self.limits = Limits(aggregation, capacity_of(strategy))
        self._norm = 0.0  # of the update that was checked last, clipped
        self._held: list[Delta] = []
        self._values: list[Tensor] = []
        self._oldest: int | None = None  # base version of what waits

    def on(self, fragment: Fragment) -> "Pipeline":
        """A pipeline like this one, for a fragment of its model, with the same server optimiser."""
        return Pipeline(
            self.strategy,
            self._discount,
            self.optimizer,
            self._aggregation,
            self._staleness,
            self._device,
            self.stages,
            fragment.buffers,
            fragment,
        )

    @property
    def range(self) -> tuple[int, int] | None:
        """The elements of the flat vector that it moves; None for all."""
        return None if self.fragment is None else self.fragment.range

    def admit(self, head: UpdateHead, version: int, layout_digest: bytes) -> int:
        """All that can be told of an update without payload and base. Returns its staleness. Raises Rejected.

        `layout_digest` is that of the whole model.
        """
        if self.fragment is not None:
            layout_digest = self.fragment.digest
        return self.stages.admit(
            head,
            version=version,
            layout_digest=layout_digest,
            aggregation=self._aggregation,
            staleness=self._staleness,
        )

    def check_base(self, base_version: int) -> None:
        """Raises Rejected UNKNOWN_BASE_VERSION if its weights are needed and not held (after a restart, say)."""
        if self.strategy.needs_history and base_version not in self.history:
            raise Rejected(Reason.UNKNOWN_BASE_VERSION, f"the weights of version {base_version} are not held")

    def check_turn(self, client_id: str) -> None:
        """Raises Rejected ONE_A_ROUND for a client that has an update in a version that takes one of each."""
        if self.strategy.one_of_a_client and self._buffer.has_of(client_id):
            raise Rejected(Reason.ONE_A_ROUND, f"an update of client {client_id} waits for this version already")

    def steps_of(self, head: UpdateHead) -> float | None:
        """Of how many local steps an update says to be, where the strategy looks at that; None: it does not say."""
        steps = head.metrics.get(LOCAL_STEPS) if self.strategy.counts_steps else None
        return steps if steps is not None and 0 < steps <= MOST_STEPS else None

    def check(self, delta: Tensor | Delta, buffers: Tensor | None, weights: Tensor) -> float:
        """The clip factor of an update that is sound, at these `weights`. Raises Rejected."""
        own = self._own(weights)
        if self._behind or buffers is not None:
            check_buffers(buffers, self._parts(own)[1].cpu(), self.buffers)
        fixed, recent = self._aggregation.clip_norm, self.limits.norm
        limit = fixed if recent is None else recent if fixed is None else min(fixed, recent)
        clip = self.stages.check(delta, own.numel() - self._behind, limit)
        if self.limits.measures:
            self._norm = as_delta(delta).norm() * clip
        return clip

    def note(self, contribution: Contribution, base_version: int) -> None:
        """The update that was checked last is folded as this contribution: later limits take it into account."""
        self._oldest = base_version if self._oldest is None else min(self._oldest, base_version)
        self.limits.note(contribution.client_id, self._norm, contribution.num_examples)

    def weigh(self, num_examples: int, tau: int) -> float:
        """The weight that the manifest records, before clipping and normalising."""
        return self.strategy.weigh(num_examples, discounted(self._discount, tau))

    def fold(
        self, contribution: Contribution, delta: Tensor | Delta, now: float, buffers: Tensor | None = None
    ) -> None:
        """Take one update in: its delta, and the values of its `buffers`, where there are any.

        `delta` is only read, and kept (see `Delta.keep`) only where the strategy holds it and no version is due yet.
        What a delta raises while it is walked through leaves the pipeline of no use.
        """
        delta = as_delta(delta)
        exactly = self.strategy.contributions_per_version
        if exactly is not None and len(self._buffer) == exactly:
            raise ValueError(f"flush before the next fold: {exactly} make a version")
        if not self.strategy.holds:
            self._sum.add(delta, self.strategy.scale(contribution))
        self._buffer.add(contribution, now)
        if self.strategy.holds:
            self._held.append(delta if self._buffer.due(now) else delta.keep())
        if self._behind and buffers is not None:
            if self.strategy.holds:
                self._values.append(buffers)
            else:
                self._mean.add(buffers, contribution.weight)

    def expect(self, updates: int, seconds: float | None = None) -> None:
        """Make the version that is begun now of so many updates, or of those that have come after so many seconds."""
        self._buffer.capacity = max(updates, self.strategy.least)
        self._buffer.patience = math.inf if seconds is None else seconds
        self.limits.resize(self._buffer.capacity)

    @property
    def capacity(self) -> int:
        """At how many updates the version that is being made is made, whatever the time."""
        return self._buffer.capacity

    def due(self, now: float) -> bool:
        """Whether what waits must become a version. Never when nothing waits."""
        return self._buffer.due(now)

    def is_overdue(self, version: int, fragments: int) -> bool:
        """Whether what waits becomes too stale before each of so many fragments has moved once more.

        A crash would lose it then: it is read again, and refused.
        """
        waits = self._oldest is not None and self.pending() >= self.strategy.least
        return waits and version - (self._oldest or 0) > self._staleness.maximum - fragments

    def deadline(self) -> float | None:
        """When `due` turns true by time alone, if it does."""
        return self._buffer.deadline()

    def sequences_of(self, client_id: str) -> list[int]:
        """The sequences of a client's updates that wait."""
        return self._buffer.sequences_of(client_id)

    def pending(self) -> int:
        """How many updates wait."""
        return len(self._buffer)

    def flush(
        self, version: int, weights: Tensor, *, recorded: bool = False
    ) -> tuple[Tensor, tuple[Contribution, ...]]:
        """The weights of `version + 1` in a tensor never written again, and the manifest. Nothing waits after.

        `weights` are those of `version` and only read. `recorded` says that the contributions are a manifest's, so
        that what it says of them stands. Raises ValueError when nothing waits.
        """
        manifest, self._oldest = self._buffer.drain(), None
        if self.strategy.holds:
            held, self._held = Held(manifest, self._held), []
            if not recorded:
                held.manifest = list(self.strategy.judge(held))
            manifest = tuple(held.manifest)
            vector = self._combine(held, version, self._own(weights))
        else:
            vector = self._sum.drain()
        if self.optimizer is not None:
            self.optimizer.prepare(version + 1, manifest)
        new = self._whole(weights, self._apply(self._own(weights), vector, manifest))
        self.limits.renew()
        if self.strategy.needs_history:
            self.history[version + 1] = new
            self.history.pop(version - self._staleness.maximum, None)
        return new, manifest

    def guard(self, parent: Tensor, weights: Tensor, tensors: Sequence[TensorSpec]) -> None:
        """Raise Rejected where `weights`, as readers would have them, must not follow those of `parent`."""
        self.stages.guard(parent, weights, tensors, self._aggregation.max_step)

    def _combine(self, held: Held, version: int, weights: Tensor) -> Tensor:
        """What is held in one vector. An update of weight 0 takes no part, and is not decoded again."""
        strategy, held = self.strategy, held.without_weight_0()  # buffers' room at the end stays empty
        if not held.manifest:
            return torch.zeros_like(weights) if strategy.uses_server_optimizer else weights.clone()
        bases = [self.history[version - item.staleness] for item in held.manifest] if strategy.needs_history else []
        vector, room, at = torch.empty_like(weights), weights.new_empty(0), 0
        for rows in held.rows([strategy.scale(item) for item in held.manifest], self._device):
            end = at + rows.shape[1]
            if room.numel() < end - at:
                room = weights.new_empty(end - at)
            here = [flat[at:end] for flat in (weights, *bases)]
            out = vector[at:end]
            found = strategy.combine(Stretch(rows, held.manifest, here[0], here[1:], out, room[: end - at]))
            if found is not out:
                out.copy_(found)
            at = end
        return vector

    def _apply(self, weights: Tensor, vector: Tensor, manifest: Sequence[Contribution]) -> Tensor:
        """The new weights, written over the combined vector and the room behind it."""
        (parameters, current), (room, behind) = self._parts(weights), self._parts(vector)
        combined = self.stages.privatise(Combined(room, self.strategy.divisor(manifest)))
        new, by = combined.vector, combined.divisor
        if self.optimizer is not None:
            begin = 0 if self.fragment is None else self.fragment.begin
            new = self.optimizer.apply(parameters, new, by, begin)
        elif by is not None:
            new.div_(divisor(by, new))
        if not self._behind:
            return new
        if new is not room:
            room.copy_(new)
        behind.copy_(self._mixed(current.cpu(), manifest))
        return vector

    def _mixed(self, current: Tensor, manifest: Sequence[Contribution]) -> Tensor:
        """The buffers of the new version (see `buffers`). Those of an update of weight 0 take no part."""
        mean, self._mean = self._mean, BufferMean()
        values, self._values = self._values, []
        taking = [(item, sent) for item, sent in zip(manifest, values, strict=False) if item.weight]
        if taking and self.strategy.combines_values:
            rows, items = torch.stack([sent for _, sent in taking]), [item for item, _ in taking]
            low, high = rows.amin(0), rows.amax(0)
            stretch = Stretch(rows, items, current, (), torch.empty_like(current), torch.empty_like(current))
            return torch.where(
                (low == current) & (high == current), current, within(self.strategy.combine(stretch), low, high)
            )
        for item, sent in taking:
            mean.add(sent, item.weight)
        return mean.mixed_into(current, self.strategy.mixing(manifest))

    def _own(self, weights: Tensor) -> Tensor:
        """What of the flat vector moves here, as a view."""
        return weights if self.fragment is None else weights[self.fragment.begin : self.fragment.end]

    def _whole(self, weights: Tensor, moved: Tensor) -> Tensor:
        """`weights` with what has moved in its place, in a tensor of their own."""
        if self.fragment is None:
            return moved
        whole = weights.clone()
        self._own(whole).copy_(moved)
        return whole

    def _parts(self, flat: Tensor) -> tuple[Tensor, Tensor]:
        """Its parameters and its buffers, as views."""
        if not self._behind:
            return flat, flat.new_empty(0)
        end = flat.numel() - self._behind
        return flat[:end], flat[end:]

    def state_tensors(self) -> dict[str, Tensor]:
        """What a snapshot must hold, by name: the live tensors, which the next flush overwrites."""
        return {} if self.optimizer is None else self.optimizer.state_tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in what `state_tensors` gave. Raises StateError if it does not fit."""
        if self.optimizer is not None:
            self.optimizer.load(tensors)
        elif tensors:
            raise StateError(f"this strategy has no server optimiser, the snapshot has {sorted(tensors)}")


def pipeline_of(pipelines: Sequence[Pipeline], elements: tuple[int, int] | None) -> Pipeline:
    """The one that moves these elements (None: all). Raises Rejected(WRONG_LAYOUT) where none does."""
    for pipeline in pipelines:
        if pipeline.range == elements:
            return pipeline
    raise moves_nowhere(elements, len(pipelines))


def capacity_of(strategy: Strategy) -> int:
    """At how many updates a version is made, whatever the time; at most so many, where that adapts."""
    return strategy.contributions_per_version or strategy.holds or strategy.buffer_size


def history_of(
    version: int, weights: Tensor, past: Mapping[int, Tensor] | None, staleness: StalenessSettings
) -> dict[int, Tensor]:
    """The history to start from: `weights` as `version`, and those of `past` that an update may still name.

    Raises ValueError if one of them is not as long as `weights`.
    """
    oldest = version - staleness.maximum
    history = {number: flat for number, flat in sorted((past or {}).items()) if oldest <= number < version}
    for flat in history.values():
        require_flat(flat, weights.numel())
    return {**{number: flat.to(weights.device) for number, flat in history.items()}, version: weights}

"""What if: the updates that a run accepted, in its order, under another rule or without some clients.

What the clients did stays as it was: their updates were trained on the versions that were really
published. Each one's base version is taken to be what stood in that version's place here.

Time plays no part. Where the original and the changed rule have one strategy and make a version of as many updates, a
version is made wherever the run made one, and rounded as the run's was where that is a delta (which with
nothing changed gives the same bytes throughout); otherwise buffers are filled by count, what is left at
the end makes a last version, and none is rounded.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from torch import Tensor

from llmos_stream.codec import Residual, add_residual, encode_delta, fits_delta, weights_digest
from llmos_stream.core import Changes, Rule, Update
from llmos_stream.core.replay import Retelling
from llmos_stream.errors import ConfigError, Rejected
from llmos_stream.log import Version
from llmos_stream.replay.difference import Difference, difference
from llmos_stream.replay.errors import Missing
from llmos_stream.replay.log import ReplayLog
from llmos_stream.replay.span import kept_span
from llmos_stream.training.model_evaluator import Evaluation, ModelEvaluator
from llmos_stream.types import Contribution, VersionHead, VersionKind


@dataclass(frozen=True, slots=True)
class Change:
    """What is different: clients whose updates are left out, and settings in place of the recorded ones."""

    without: frozenset[str] = frozenset()
    settings: Changes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """Both stories measured where the original run had reached `version`; `stand_in` is the version here."""

    version: int
    stand_in: int
    original: Evaluation
    changed: Evaluation


@dataclass(slots=True)
class Told:
    """Where it began and ended, in the original's numbers, and what came of it."""

    first: int
    last: int
    deleted: str | None
    """Why it does not begin earlier."""
    anew: bool
    """Whether the server optimiser's moments start anew, since the log does not hold those of `first`."""
    final: Version
    """The resulting weights, under the last original version's head with the number reached here."""
    original_digest: str = ""
    digest: str = ""
    apart: Difference | None = None
    folded: int = 0
    removed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    points: list[Point] = field(default_factory=list)


class WhatIf:
    """One such story. Call `run` once.

    Weights are held for every version that a later update names as its base, where the strategy needs them:
    up to `staleness.maximum + 1` models. Otherwise two are, and the optimiser's moments.
    """

    def __init__(
        self, log: ReplayLog, change: Change, *, judge: ModelEvaluator | None = None, every: int | None = None
    ) -> None:
        self._log = log
        self._change = change
        self._judge = judge
        self._every = every
        self._stand_ins: dict[int, int] = {}
        self._bases: Counter[int] = Counter()  # base versions that updates ahead name, where their weights are needed
        self._held: dict[int, Tensor] = {}
        self._residual: Residual | None = None
        self._retelling: Retelling
        self._told: Told

    async def run(self, numbers: range, progress: Callable[[int], None] = lambda _: None) -> Told:
        """Tell the versions `numbers` again. Raises ConfigError when nothing is changed by it, Missing."""
        first, deleted = await kept_span(self._log, numbers, self._change.without)
        heads = [self._log.index.entry(number).head for number in range(first + 1, numbers.stop)]
        ahead = [item for head in heads for item in head.manifest if item.client_id not in self._change.without]
        self._check_clients(heads)
        self._count_bases(heads)
        layout = self._log.index.layout(first)
        source = await self._log.updates(ahead, layout)
        begin, moments = await self._log.version(first), await self._log.moments(first)
        anew = begin.head.parent is not None and not moments and bool(self._rule(heads[0]).moments)
        self._told = Told(first, numbers.stop - 1, deleted, anew, begin)
        self._retelling = Retelling(first, begin.weights, moments)
        self._residual = await self._owed(first)
        for head in heads:
            parent = head.number - 1
            recorded, rule = self._log.rule(head), self._rule(head)
            await self._follow(rule)
            for item in head.manifest:
                if item.client_id in self._change.without:
                    self._told.removed += 1
                    continue
                base = parent - item.staleness
                await self._fold(item, await self._log.take(source, item, base, layout), base, head.layout_digest)
                if not _by_boundary(recorded, rule) and self._retelling.full:
                    await self._flush()
            if _by_boundary(recorded, rule):
                await self._flush(head)
            elif head is heads[-1]:
                await self._flush()
            self._stand_ins[head.number] = self._retelling.version
            if self._bases[head.number]:
                self._held[head.number] = self._retelling.weights
            await self._measure(head, final=head is heads[-1])
            progress(head.number)
        return await self._end(heads[-1])

    def _rule(self, head: VersionHead) -> Rule:
        try:
            return self._log.rule(head, self._change.settings)
        except ValueError as error:
            raise ConfigError(f"the changed settings make no rule: {error}") from None

    def _check_clients(self, heads: list[VersionHead]) -> None:
        there = {item.client_id for head in heads for item in head.manifest}
        if unknown := sorted(self._change.without - there):
            raise ConfigError(f"--without: no contribution of {', '.join(unknown)} in these versions")

    def _count_bases(self, heads: list[VersionHead]) -> None:
        for head in heads:
            if self._rule(head).strategy().needs_history:
                self._bases.update(
                    head.number - 1 - item.staleness
                    for item in head.manifest
                    if item.client_id not in self._change.without
                )

    async def _follow(self, rule: Rule) -> None:
        if not self._retelling.follows(rule):
            await self._flush()
            self._retelling.follow(rule)

    async def _fold(self, item: Contribution, update: Update, base: int, layout_digest: bytes) -> None:
        retelling, offload = self._retelling, self._log.offload
        stand_in = self._stand_ins.get(base, base)  # up to where this begins, the two stories are one
        try:
            staleness = retelling.stale(update, stand_in, layout_digest)
            weights = await self._weights(base) if retelling.needs_base else None
            await offload.run(retelling.fold, item, update, staleness, weights)
            self._told.folded += 1
        except Rejected as rejected:
            self._told.refused[rejected.reason] += 1
        finally:
            self._release(base)

    async def _weights(self, base: int) -> Tensor | None:
        if base in self._stand_ins:
            return self._held[base]
        try:
            return await self._log.weights(base)
        except Missing:
            return None  # refused, as the aggregator would

    def _release(self, base: int) -> None:
        if self._bases[base]:
            self._bases[base] -= 1
            if not self._bases[base]:
                self._held.pop(base, None)

    async def _flush(self, told: VersionHead | None = None) -> None:
        """Make a version of what is buffered, and round it as the version `told` was."""
        if self._retelling.pending:
            await self._log.offload.run(self._make, told)

    def _make(self, told: VersionHead | None) -> None:
        before = self._retelling.weights
        self._retelling.flush()
        weights = self._retelling.weights
        if told is not None and told.kind is VersionKind.DELTA and fits_delta(before, weights):
            _, self._residual = encode_delta(before, weights, self._residual, told.codec)
        else:
            add_residual(weights, self._residual)
            self._residual = None

    async def _owed(self, first: int) -> Residual | None:
        try:
            return await self._log.residual(first)
        except Missing:
            return None

    async def _measure(self, head: VersionHead, *, final: bool) -> None:
        if self._judge is None or not (final or (self._every and head.number % self._every == 0)):
            return
        original = await self._log.version(head.number)
        evaluate, offload, here = self._judge.evaluate, self._log.offload, self._retelling
        changed = await offload.run(evaluate, here.version, original.layout, here.weights)
        before = await offload.run(evaluate, head.number, original.layout, original.weights)
        self._told.points.append(Point(head.number, here.version, before, changed))

    def _version(self, head: VersionHead) -> Version:
        reached = replace(head, number=self._retelling.version)
        return Version(reached, self._log.index.layout(head.number), self._retelling.weights)

    async def _end(self, head: VersionHead) -> Told:
        told, offload = self._told, self._log.offload
        digest = await offload.run(weights_digest, self._retelling.weights)
        final = self._version(head)
        told.final = replace(final, head=replace(final.head, weights_digest=digest))
        told.digest, told.original_digest = digest.hex(), head.weights_digest.hex()
        told.apart = await offload.run(difference, self._retelling.weights, await self._log.weights(head.number))
        return told


def _by_boundary(recorded: Rule, rule: Rule) -> bool:
    """Whether versions are made where the run made them."""
    return recorded.aggregation.strategy == rule.aggregation.strategy and recorded.capacity == rule.capacity

"""Counterfactual runs: the updates that a run accepted, in its order, under another rule or without some clients.

What the clients did stays as it was: their updates were trained on the published versions. The base version of
each is mapped to the version that the counterfactual run had reached at that point.

Time plays no part. Where both rules have one strategy and make a version of as many updates, a version is made
wherever the original run made one. It is rounded as the original was, where that is a delta; so a run with nothing
changed gives the same bytes. Otherwise buffers are filled by count, what is left at the end makes a last version,
and none is rounded.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace

from torch import Tensor

from llmos_stream.codec import Layout, encode_delta, fits_delta, weights_digest
from llmos_stream.core import Changes, Rule, Update
from llmos_stream.core.replay import Replay
from llmos_stream.errors import ConfigError, NotFound, Rejected
from llmos_stream.log.snapshots import Owed, pay
from llmos_stream.log.versions import Version, fragments_of
from llmos_stream.replay.index import Missing
from llmos_stream.replay.rebuild import Difference, difference
from llmos_stream.replay.replay_log import ReplayLog, kept_span
from llmos_stream.training.model_evaluator import Evaluation, ModelEvaluator
from llmos_stream.types import Contribution, VersionHead, VersionKind


@dataclass(frozen=True, slots=True)
class Change:
    """What is different: clients whose updates are left out, and settings in place of the recorded ones."""

    without: frozenset[str] = frozenset()
    settings: Changes = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Point:
    """Both runs measured where the original had reached `version` and the counterfactual one `stand_in`."""

    version: int
    stand_in: int
    original: Evaluation
    changed: Evaluation


@dataclass(slots=True)
class WhatIfResult:
    """Where a counterfactual run began and ended, in the original's numbers, and its outcome."""

    first: int
    last: int
    deleted: str | None
    """Why it does not begin earlier."""
    moments_reset: bool
    """Whether the server optimiser's moments start at zero, since the log does not hold those of `first`."""
    final: Version
    """The resulting weights, under the head of the last original version with the number reached here."""
    original_digest: str = ""
    digest: str = ""
    difference: Difference | None = None
    folded: int = 0
    removed: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    points: list[Point] = field(default_factory=list)


class WhatIf:
    """One counterfactual run. Call `run` once.

    Weights are held for every version that a later update names as its base, where the strategy needs them:
    up to `staleness.maximum + 1` models. Otherwise two models are held, and the optimiser's moments.
    """

    def __init__(
        self, log: ReplayLog, change: Change, *, judge: ModelEvaluator | None = None, every: int | None = None
    ) -> None:
        self._log = log
        self._change = change
        self._judge = judge
        self._every = every
        self._base_map: dict[int, int] = {}
        self._bases: Counter[int] = Counter()  # base versions that updates ahead name, where their weights are needed
        self._held: dict[int, Tensor] = {}
        self._owed: Owed = {}
        self._layout: Layout
        self._replay: Replay
        self._result: WhatIfResult

    async def run(self, numbers: range, progress: Callable[[int], None] = lambda _: None) -> WhatIfResult:
        """Run the versions `numbers` again. `progress` is called with the number of each.

        Raises:
            ConfigError: The change makes no rule, or names a client that has no update in these versions.
            Missing: The log does not hold what the run needs.
        """
        first, deleted = await kept_span(self._log, numbers, self._change.without)
        heads = [self._log.index.entry(number).head for number in range(first + 1, numbers.stop)]
        ahead = [item for head in heads for item in head.manifest if item.client_id not in self._change.without]
        self._check_clients(heads)
        self._count_bases(heads)
        self._layout = layout = self._log.index.layout(first)
        source = await self._log.updates(ahead, first)
        begin, moments = await self._log.version(first), await self._log.moments(first)
        reset = begin.head.parent is not None and not moments and bool(self._rule(heads[0]).moments)
        self._result = WhatIfResult(first, numbers.stop - 1, deleted, reset, begin)
        self._replay = Replay(first, begin.weights, moments, layout.buffers, layout.fragments)
        with suppress(Missing):
            self._owed = await self._log.owed(first)
        for head in heads:
            parent = head.number - 1
            recorded, rule = self._log.rule(head), self._rule(head)
            if not self._replay.follows(rule):
                await self._flush_all()
                self._replay.follow(rule)
            for item in head.manifest:
                if item.client_id in self._change.without:
                    self._result.removed += 1
                    continue
                update = await self._log.take(source, item, parent)
                # Of a fragment this is newer than the update's own base where others have moved while it waited.
                await self._fold(item, update, parent - item.staleness, head.layout_digest)
                if not _by_boundary(recorded, rule) and self._replay.full:
                    await self._flush()
            if _by_boundary(recorded, rule):
                await self._flush(head)
            elif head is heads[-1]:
                await self._flush_all()
            self._base_map[head.number] = self._replay.version
            if self._bases[head.number]:
                self._held[head.number] = self._replay.weights
            await self._measure(head, final=head is heads[-1])
            progress(head.number)
        return await self._end(heads[-1])

    def _rule(self, head: VersionHead) -> Rule:
        try:
            rule = self._log.rule(head, self._change.settings)
        except ValueError as error:
            raise ConfigError(f"the changed settings make no rule: {error}") from None
        if rule.aggregation.fragments != (count := fragments_of(head.rule)):
            raise ConfigError(f"aggregation.fragments: the updates of this run are cut into {count}; leave it so")
        return rule

    def _check_clients(self, heads: list[VersionHead]) -> None:
        there = {item.client_id for head in heads for item in head.manifest}
        if unknown := sorted(self._change.without - there):
            raise NotFound(f"--without: no contribution of {', '.join(unknown)} in these versions")

    def _count_bases(self, heads: list[VersionHead]) -> None:
        for head in heads:
            if self._rule(head).strategy().needs_history:
                self._bases.update(
                    head.number - 1 - item.staleness
                    for item in head.manifest
                    if item.client_id not in self._change.without
                )

    async def _fold(self, item: Contribution, update: Update, base: int, layout_digest: bytes) -> None:
        replay, offload = self._replay, self._log.offload
        stand_in = self._base_map.get(base, base)  # up to the first version both runs are the same
        try:
            staleness = replay.stale(update, stand_in, layout_digest)
            weights = await self._weights(base) if replay.needs_base else None
            await offload.run(replay.fold, item, update, staleness, weights)
            self._result.folded += 1
        except Rejected as rejected:
            self._result.refused[rejected.reason] += 1
        finally:
            self._release(base)

    async def _weights(self, base: int) -> Tensor | None:
        if base in self._base_map:
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

    async def _flush(self, original: VersionHead | None = None) -> None:
        """Make a version of what is buffered, and round it as `original` was."""
        if self._replay.pending:
            await self._log.offload.run(self._make, original)

    async def _flush_all(self) -> None:
        """Make a version of each fragment that waits."""
        while self._replay.pending:
            await self._flush()

    def _make(self, original: VersionHead | None) -> None:
        parent = self._replay.weights
        self._replay.flush()
        weights, moved = self._replay.weights, self._replay.moved
        before, after = self._layout.moving(parent, moved)[0], self._layout.moving(weights, moved)[0]
        if original is not None and original.kind is not VersionKind.FULL and fits_delta(before, after):
            _, residual = encode_delta(before, after, self._owed.get(moved), original.codec)
            self._owed = {**self._owed, moved: residual}
        else:
            pay(weights, self._layout, self._owed)
            self._owed = {}

    async def _measure(self, head: VersionHead, *, final: bool) -> None:
        if self._judge is None or not (final or (self._every and head.number % self._every == 0)):
            return
        original = await self._log.version(head.number)
        evaluate, offload, here = self._judge.evaluate, self._log.offload, self._replay
        changed = await offload.run(evaluate, here.version, original.layout, here.weights)
        before = await offload.run(evaluate, head.number, original.layout, original.weights)
        self._result.points.append(Point(head.number, here.version, before, changed))

    async def _end(self, head: VersionHead) -> WhatIfResult:
        result, offload = self._result, self._log.offload
        digest = await offload.run(weights_digest, self._replay.weights)
        reached = replace(head, number=self._replay.version, weights_digest=digest)
        result.final = Version(reached, self._log.index.layout(head.number), self._replay.weights)
        result.digest, result.original_digest = digest.hex(), head.weights_digest.hex()
        result.difference = await offload.run(difference, self._replay.weights, await self._log.weights(head.number))
        return result


def _by_boundary(recorded: Rule, rule: Rule) -> bool:
    """Say whether versions are made where the run made them."""
    return recorded.aggregation.strategy == rule.aggregation.strategy and recorded.capacity == rule.capacity

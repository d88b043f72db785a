"""Versions rebuilt, each from its parent's weights and its manifest, and compared with what was published."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum, unique
from time import perf_counter

import torch
from torch import Tensor

from llmos_stream.codec import Layout, encode_delta, weights_digest
from llmos_stream.core import Rule
from llmos_stream.core.flat import l2_norm
from llmos_stream.core.replay import Replay
from llmos_stream.errors import Rejected
from llmos_stream.log.snapshots import Owed, pay
from llmos_stream.log.versions import Version, initial_weights, rolled_back_to, started_from
from llmos_stream.replay.index import Missing
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.replay.updates import RecordedUpdates
from llmos_stream.types import VersionHead, VersionKind


@unique
class RebuildOutcome(StrEnum):
    """How a rebuilt version compares with the published one."""

    INITIAL = "initial"  # has no parent: its weights are where the log begins, and match their digest
    MATCH = "match"  # the same bytes
    DIFFERS = "differs"
    GONE = "gone"  # cannot be rebuilt: something it is made of is not in the log


@dataclass(frozen=True, slots=True)
class Difference:
    """How far two vectors differ: in one element at most, and in norm relative to the second's."""

    max_abs: float
    relative_l2: float


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result for one version. `difference` is set where it differs; `build` is what published it."""

    version: int
    outcome: RebuildOutcome
    contributions: int = 0
    seconds: float = 0.0
    published_digest: str = ""
    rebuilt_digest: str = ""
    detail: str = ""
    difference: Difference | None = None
    build: Mapping[str, str] = field(default_factory=dict)


class Rebuilder:
    """One walk through versions, in order. `last` is the newest version rebuilt, if any.

    A version is rebuilt from the published weights of its parent. The moments of a server optimiser and the
    error-feedback residual of a chain of deltas are carried along, or read from the parent's snapshots. Where the log
    has none for the first version's parent, the walk begins further back.
    """

    def __init__(self, log: ReplayLog, numbers: range) -> None:
        self.last: Version | None = None
        self._log = log
        self._numbers = numbers
        self._replay: Replay | None = None  # at the version whose moments it has
        self._owed: tuple[int, Owed] | None = None  # of a version: what it and those before it left out
        self._source: RecordedUpdates

    async def verdicts(self) -> AsyncIterator[Verdict]:
        """Give one for each version asked for."""
        if not self._numbers:
            return
        walk = range(self._first(), self._numbers.stop)
        index = self._log.index
        ahead = (item for number in walk if number in index.versions for item in index.versions[number].head.manifest)
        self._source = await self._log.updates(ahead, index.numbers[-1])
        for number in walk:
            verdict = await self._verdict(number)
            if number in self._numbers:
                yield verdict

    def _first(self) -> int:
        """Return where to begin so that moments and residual of the first version asked for are known, if it can be."""
        index, first = self._log.index, self._numbers.start
        while first in index.versions:
            head = index.versions[first].head
            if head.parent is None or head.parent not in index.versions or self._is_known(head, head.parent):
                return first
            first = head.parent
        return self._numbers.start

    def _is_known(self, head: VersionHead, parent: int) -> bool:
        """Say whether the log has the parent's moments and its residual, as far as there were any."""
        if rolled_back_to(head) is not None:
            return True  # it needs neither
        if self._lacks_residual(parent):
            return False
        try:
            return bool(self._log.index.moments(parent)) or not self._log.rule(head).moments
        except Rejected:
            return True

    async def _verdict(self, number: int) -> Verdict:
        begun = perf_counter()
        try:
            head = self._log.index.entry(number).head
        except Missing as missing:
            return Verdict(number, RebuildOutcome.GONE, detail=str(missing))
        count, digest = len(head.manifest), head.weights_digest.hex()
        try:
            if head.parent is None:
                self.last = await self._log.version(number)
                seconds, source = perf_counter() - begun, initial_weights(head) if started_from(head) else ""
                return Verdict(number, RebuildOutcome.INITIAL, 0, seconds, digest, digest, source)
            equals = rolled_back_to(head)
            if equals is not None:  # its moments start anew, and lie in the log
                self._replay = self._owed = None
                rebuilt = await self._log.weights(equals)
            else:
                rebuilt = await self._rebuild(head, head.parent)
            found = await self._log.offload.run(weights_digest, rebuilt)
            outcome, differs = RebuildOutcome.MATCH, None
            if found == head.weights_digest:
                self._log.hold(number, rebuilt)
            else:
                if equals is None and self._lacks_residual(
                    head.parent
                ):  # the one computed here may not be the aggregator's
                    raise Missing(f"what version {head.parent} left out (its residual) is not in the log")
                published = await self._log.weights(number)
                outcome, differs = RebuildOutcome.DIFFERS, await self._log.offload.run(difference, rebuilt, published)
        except (Missing, Rejected) as missing:
            for item in head.manifest:
                self._source.drop(item)
            self._replay = self._owed = None
            return Verdict(number, RebuildOutcome.GONE, count, perf_counter() - begun, digest, detail=str(missing))
        # Moments carried through a difference differ too: recorded ones are better, where there are any.
        if differs and self._log.index.moments(number):
            self._replay = None
        if differs:
            self._owed = None
        other = self._log.rule(head).other_packages() if differs else None
        self.last = Version(head, self._log.index.layout(number), rebuilt)
        seconds = perf_counter() - begun
        return Verdict(number, outcome, count, seconds, digest, found.hex(), other or "", differs, head.build)

    async def _rebuild(self, head: VersionHead, parent: int) -> Tensor:
        """Return the weights that the manifest makes of the parent's. Raises Missing or Rejected."""
        rule = self._log.rule(head)
        exactly = rule.strategy().contributions_per_version
        if not head.manifest or (exactly is not None and len(head.manifest) != exactly):
            raise Missing(f"version {head.number} names {len(head.manifest)} contributions, which no rule makes one of")
        for item in head.manifest:
            self._source.check_kept(item)  # before the others are read in vain
        weights = await self._log.weights(parent)
        layout = self._log.index.layout(head.number)
        replay = await self._replay_at(parent, weights, rule, layout)
        for item in head.manifest:
            update = await self._log.take(self._source, item, parent)
            base = await self._log.weights(parent - item.staleness) if replay.needs_base else None
            await self._log.offload.run(replay.fold_again, item, update, base)
        await self._log.offload.run(replay.flush, recorded=True)
        if replay.pending or replay.moved != head.range:
            raise Missing(f"version {head.number} names contributions of another fragment than it has moved")
        await self._round(head, layout, parent, weights, replay.weights)
        return replay.weights

    async def _round(self, head: VersionHead, layout: Layout, parent: int, before: Tensor, weights: Tensor) -> None:
        """Round parameters in place to what was published, as the aggregator did."""
        carried, offload = self._owed, self._log.offload
        owed = carried[1] if carried is not None and carried[0] == parent else await self._log.owed(parent)
        if head.kind is VersionKind.FULL:
            await offload.run(pay, weights, layout, owed)
            return
        here, there = layout.moving(before, head.range)[0], layout.moving(weights, head.range)[0]
        try:
            delta = await offload.run(encode_delta, here, there, owed.get(head.range), head.codec)
        except ValueError as error:
            raise Missing(f"version {head.number} is no delta that can be made again: {error}") from None
        self._owed = (head.number, {**owed, head.range: delta.residual})

    async def _replay_at(self, parent: int, weights: Tensor, rule: Rule, layout: Layout) -> Replay:
        """Return a replay that stands where the parent had been published, under `rule`."""
        replay, self._replay = self._replay, None
        if replay is None or replay.version != parent:
            moments = await self._log.moments(parent) if rule.moments else None
            replay = Replay(parent, weights, moments, layout.buffers, layout.fragments)
        replay.weights = weights
        if not replay.follow(rule) and self._had_moments(parent, rule):
            raise Missing(f"the moments of the server optimiser at version {parent} are not in the log")
        self._replay = replay
        return replay

    def _lacks_residual(self, parent: int) -> bool:
        """Say whether the parent is a delta whose residual is not in the log."""
        return self._log.index.residuals(parent) is None

    def _had_moments(self, parent: int, rule: Rule) -> bool:
        """Say whether the parent left moments that this rule goes on with; a new optimiser starts with none."""
        before = self._log.index.entry(parent).head
        return before.parent is not None and self._log.rule(before).moments == rule.moments


def difference(one: Tensor, other: Tensor) -> Difference:
    """Compare two flat vectors of the same length."""
    apart = torch.sub(one, other)
    norm, of = l2_norm(apart), l2_norm(other)
    relative = 0.0 if norm == 0 else norm / of if of else float("inf")
    return Difference(float(apart.abs_().max()) if apart.numel() else 0.0, relative)

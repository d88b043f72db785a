"""Aggregation driven by manifests: the recorded rule again, or the same updates under another one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from llmos_stream.core.pipeline import Pipeline, pipeline_of
from llmos_stream.core.rule import Rule
from llmos_stream.core.validate import Update
from llmos_stream.types import Contribution, Fragment, TensorSpec, UpdateHead


def _uncut(count: int) -> Sequence[Fragment]:
    return ()


class Replay:
    """Folds the updates of a run again, under rules that may differ from the recorded ones.

    Stands at a version (`version`, `weights`: flat, never written to) with an empty buffer. Time plays no
    part: a buffer is flushed when it is full or when the caller says so. `cut` gives the fragments of the model, where
    a rule has more than one.
    """

    def __init__(
        self,
        version: int,
        weights: Tensor,
        moments: Mapping[str, Tensor] | None = None,
        buffers: Sequence[TensorSpec] = (),
        cut: Callable[[int], Sequence[Fragment]] = _uncut,
    ) -> None:
        self.version = version
        self.weights = weights
        self.moved: tuple[int, int] | None = None
        """The elements that the newest version has moved, where those were one fragment's."""
        self._buffers = buffers
        self._cut = cut
        self._moments: Mapping[str, Tensor] = moments or {}
        self._rule: Rule | None = None
        self._pipelines: Sequence[Pipeline] = ()
        self._newest: Pipeline | None = None  # which has folded last

    @property
    def pending(self) -> int:
        """Updates that are buffered."""
        return sum(pipeline.pending() for pipeline in self._pipelines)

    @property
    def full(self) -> bool:
        return any(pipeline.due(0.0) for pipeline in self._pipelines)

    def follows(self, rule: Rule) -> bool:
        return rule == self._rule

    def follow(self, rule: Rule) -> bool:
        """Go on under `rule`. Moments are kept where the new optimiser has the same ones, else they start at zero.

        Says whether they are kept. Raises ValueError while updates are buffered under another rule.
        """
        if rule == self._rule:
            return True
        if self.pending:
            raise ValueError("flush before the rule changes")
        if self._rule is not None and self._known.strategy.adapts and rule.resized_as(self._rule) == self._rule:
            self._rule = rule
            for pipeline in self._pipelines:
                pipeline.expect(rule.capacity)
            return True
        if self._rule is not None:
            self._moments = self._known.state_tensors()
        count = rule.aggregation.fragments
        fragments = self._cut(count) if count > 1 else ()
        self._rule, self._newest = rule, None
        self._pipelines = rule.pipelines(self.version, self.weights, buffers=self._buffers, fragments=fragments)
        kept = self._known.state_tensors().keys() == self._moments.keys()
        if kept and self._moments:
            self._known.load(self._moments)
        self._moments = {}
        return kept

    def stale(self, update: Update, base_version: int, layout_digest: bytes) -> int:
        """The staleness of an update on `base_version`. Raises Rejected where the rule refuses it. Changes nothing."""
        head = replace(update.head, base_version=base_version)
        return self._of(head).admit(head, self.version, layout_digest)

    def fold(self, contribution: Contribution, update: Update, staleness: int, base: Tensor | None = None) -> None:
        """Take an update in, with weight and clip factor as the rule has them.

        `base` is the weights of its base version, where they are needed (`needs_base`). Raises Rejected as a `step`
        would.
        """
        pipeline = self._newest = self._of(update.head)
        pipeline.check_turn(contribution.client_id)
        clip = pipeline.check(update.delta, update.buffers, self.weights)
        num_examples = pipeline.limits.counted(update.head.num_examples)
        self._hold(base, self.version - staleness)
        again = replace(
            contribution,
            num_examples=num_examples,
            staleness=staleness,
            weight=pipeline.weigh(num_examples, staleness),
            clip=clip,
            steps=pipeline.steps_of(update.head),
        )
        pipeline.fold(again, update.delta, 0.0, update.buffers)
        pipeline.note(again, update.head.base_version)

    def fold_again(self, contribution: Contribution, update: Update, base: Tensor | None = None) -> None:
        """Take an update in as its manifest has it. See `fold` for `base`."""
        self._hold(base, self.version - contribution.staleness)
        self._newest = self._of(update.head)
        self._newest.fold(contribution, update.delta, 0.0, update.buffers)

    def _hold(self, base: Tensor | None, version: int) -> None:
        if self.needs_base:
            history = self._known.history
            if not self.pending:
                history.clear()  # no more of them are held than what waits needs
            if base is not None:
                history[version] = base
            self._known.check_base(version)

    def flush(self, *, recorded: bool = False) -> None:
        """Make a version of what is buffered: where that is `recorded`, as its manifest has it.

        Of several fragments the one moves that an update was folded into last, or else the first that one waits for.
        Raises ValueError when there is nothing.
        """
        waiting = [pipeline for pipeline in self._pipelines if pipeline.pending()]
        pipeline = self._newest if self._newest in waiting else next(iter(waiting), self._known)
        self.moved, self._newest = pipeline.range, None
        self.weights, _ = pipeline.flush(self.version, self.weights, recorded=recorded)
        self.version += 1

    def _of(self, head: UpdateHead) -> Pipeline:
        """The pipeline of an update. Raises Rejected(WRONG_LAYOUT)."""
        return self._known if self._known.range == head.range else pipeline_of(self._pipelines, head.range)

    @property
    def needs_base(self) -> bool:
        """Whether the rule needs the weights that clients started from."""
        return self._known.strategy.needs_history

    @property
    def _known(self) -> Pipeline:
        if self._rule is None:
            raise ValueError("no rule to follow yet")
        return self._pipelines[0]

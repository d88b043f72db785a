"""Aggregation driven by manifests: the recorded rule again, or the same updates under another one."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from llmos_stream.core.pipeline import Pipeline
from llmos_stream.core.rule import Rule
from llmos_stream.core.validate import Update
from llmos_stream.types import Contribution, TensorSpec


class Replay:
    """Folds the updates of a run again, under rules that may differ from the recorded ones.

    Stands at a version (`version`, `weights`: flat, never written to) with an empty buffer. Time plays no
    part: a buffer is flushed when it is full or when the caller says so.
    """

    def __init__(
        self,
        version: int,
        weights: Tensor,
        moments: Mapping[str, Tensor] | None = None,
        buffers: Sequence[TensorSpec] = (),
    ) -> None:
        self.version = version
        self.weights = weights
        self._buffers = buffers
        self._moments: Mapping[str, Tensor] = moments or {}
        self._rule: Rule | None = None
        self._pipeline: Pipeline

    @property
    def pending(self) -> int:
        """Updates that are buffered."""
        return 0 if self._rule is None else self._pipeline.pending()

    @property
    def full(self) -> bool:
        return self._rule is not None and self._pipeline.due(0.0)

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
        if self._rule is not None and self._pipeline.strategy.adapts and rule.resized_as(self._rule) == self._rule:
            self._rule = rule
            self._pipeline.expect(rule.capacity)
            return True
        if self._rule is not None:
            self._moments = self._pipeline.state_tensors()
        self._rule, self._pipeline = rule, rule.pipeline(self.version, self.weights, buffers=self._buffers)
        kept = self._pipeline.state_tensors().keys() == self._moments.keys()
        if kept and self._moments:
            self._pipeline.load(self._moments)
        self._moments = {}
        return kept

    def stale(self, update: Update, base_version: int, layout_digest: bytes) -> int:
        """The staleness of an update on `base_version`. Raises Rejected where the rule refuses it. Changes nothing."""
        return self._known.admit(replace(update.head, base_version=base_version), self.version, layout_digest)

    def fold(self, contribution: Contribution, update: Update, staleness: int, base: Tensor | None = None) -> None:
        """Take an update in, with weight and clip factor as the rule has them.

        `base` is the weights of its base version, where they are needed (`needs_base`). Raises Rejected as a `step`
        would.
        """
        pipeline = self._known
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
        pipeline.note(again)

    def fold_again(self, contribution: Contribution, update: Update, base: Tensor | None = None) -> None:
        """Take an update in as its manifest has it. See `fold` for `base`."""
        self._hold(base, self.version - contribution.staleness)
        self._known.fold(contribution, update.delta, 0.0, update.buffers)

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

        Raises ValueError when there is nothing.
        """
        self.weights, _ = self._known.flush(self.version, self.weights, recorded=recorded)
        self.version += 1

    @property
    def needs_base(self) -> bool:
        """Whether the rule needs the weights that clients started from."""
        return self._known.strategy.needs_history

    @property
    def _known(self) -> Pipeline:
        if self._rule is None:
            raise ValueError("no rule to follow yet")
        return self._pipeline

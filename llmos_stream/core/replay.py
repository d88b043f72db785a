"""Aggregation driven by manifests: the recorded rule again, or the same updates under another one."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, Section, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core.strategy import Strategy, make_strategy
from llmos_stream.core.validate import Update, check_and_clip, check_head
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Contribution

Changes = Mapping[str, Mapping[str, object]]
"""Settings in place of the recorded ones: section, field, value."""

S = TypeVar("S", bound=Section)


@dataclass(frozen=True, slots=True)
class Rule:
    """What a version was aggregated under."""

    aggregation: AggregationSettings
    staleness: StalenessSettings
    server_optimizer: ServerOptimizerSettings

    @classmethod
    def of(cls, recorded: Mapping[str, object], changes: Changes | None = None) -> "Rule":
        """The rule that a version's head records, with `changes`.

        Raises Rejected(UNSUPPORTED) where the record is not one that this release understands, ValueError for
        changes that make no sense.
        """
        changes = changes or {}
        return cls(
            _section(AggregationSettings, "aggregation", recorded, changes),
            _section(StalenessSettings, "staleness", recorded, changes),
            _section(ServerOptimizerSettings, "server_optimizer", recorded, changes),
        )

    def strategy(self, version: int, weights: Tensor, history: Mapping[int, Tensor] | None = None) -> Strategy:
        """A fresh strategy at `version` (see `make_strategy`)."""
        return make_strategy(version, weights, self.aggregation, self.staleness, self.server_optimizer, history=history)

    @property
    def moments(self) -> frozenset[str]:
        """Names of what the server optimiser remembers from version to version; empty where it remembers nothing."""
        return frozenset(self.strategy(0, torch.zeros(1)).state_tensors())


def _section(kind: type[S], name: str, recorded: Mapping[str, object], changes: Changes) -> S:
    found = recorded.get(name)
    try:
        fields: dict[str, Any] = dict(found) if isinstance(found, Mapping) else {}
        settings = kind.model_validate(fields)
    except ValueError:
        raise Rejected(Reason.UNSUPPORTED, f"this release does not understand the recorded rule's {name}") from None
    if not fields:
        raise Rejected(Reason.UNSUPPORTED, f"the version does not record its rule's {name}")
    return kind.model_validate({**fields, **changes[name]}) if name in changes else settings


class Retelling:
    """The updates of a run once more, under rules that may differ from theirs.

    Stands at a version (`version`, `weights`: flat, never written to) with an empty buffer. Time plays no
    part: a buffer is flushed when it is full or when the caller says so.
    """

    def __init__(self, version: int, weights: Tensor, moments: Mapping[str, Tensor] | None = None) -> None:
        self.version = version
        self.weights = weights
        self._moments: Mapping[str, Tensor] = moments or {}
        self._rule: Rule | None = None
        self._strategy: Strategy

    @property
    def pending(self) -> int:
        """Updates that are buffered."""
        return 0 if self._rule is None else self._strategy.pending()

    @property
    def full(self) -> bool:
        return self._rule is not None and self._strategy.due(0.0)

    def follows(self, rule: Rule) -> bool:
        return rule == self._rule

    def follow(self, rule: Rule) -> None:
        """Go on under `rule`. Moments are kept where the new optimiser has the same ones, else they start anew.

        Raises ValueError while updates are buffered under another rule.
        """
        if rule == self._rule:
            return
        if self.pending:
            raise ValueError("flush before the rule changes")
        if self._rule is not None:
            self._moments = self._strategy.state_tensors()
        self._rule, self._strategy = rule, rule.strategy(self.version, self.weights)
        if self._moments and self._strategy.state_tensors().keys() == self._moments.keys():
            self._strategy.load(self._moments)
        self._moments = {}

    def stale(self, update: Update, base_version: int, layout_digest: bytes) -> int:
        """The staleness of an update on `base_version`. Raises Rejected where the rule refuses it. Changes nothing."""
        return check_head(
            replace(update.head, base_version=base_version),
            version=self.version,
            layout_digest=layout_digest,
            aggregation=self._known.aggregation,
            staleness=self._known.staleness,
        )

    def fold(self, contribution: Contribution, update: Update, staleness: int, base: Tensor | None = None) -> None:
        """Take an update in, with weight and clip factor as the rule has them.

        `base` is the weights of its base version, which fedasync needs. Raises Rejected as a `step` would.
        """
        clip = check_and_clip(update.delta, self.weights.numel(), self._known.aggregation.clip_norm)
        if self.needs_base:
            history = {} if base is None else {self.version - staleness: base}
            self._strategy = self._known.strategy(self.version, self.weights, history)
            self._strategy.check_base(self.version - staleness)
        again = replace(
            contribution,
            staleness=staleness,
            weight=self._strategy.weigh(contribution.num_examples, staleness),
            clip=clip,
        )
        self._strategy.fold(again, update.delta, 0.0)

    def flush(self) -> None:
        """Make a version of what is buffered. Raises ValueError when there is nothing."""
        self.weights, _ = self._strategy.flush(self.version, self.weights)
        self.version += 1

    @property
    def needs_base(self) -> bool:
        """Whether the rule mixes clients' models in, and so needs the weights they started from."""
        return self._known.aggregation.strategy == "fedasync"

    @property
    def _known(self) -> Rule:
        if self._rule is None:
            raise ValueError("no rule to follow yet")
        return self._rule

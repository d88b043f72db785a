"""What an aggregation strategy is, and which one the settings name.

A strategy takes updates that were validated, and turns what it holds into the next version. It may
be driven by `step`, or by a replay that takes each contribution (weight and clip factor) from a manifest.
"""

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core.delta import Delta
from llmos_stream.core.fedasync import FedAsync, held
from llmos_stream.core.fedbuff import FedBuff
from llmos_stream.core.optimizer import make_optimizer
from llmos_stream.types import Contribution


class Strategy(Protocol):
    """One rule of aggregation with what it must remember."""

    def check_base(self, base_version: int) -> None:
        """Raise Rejected if an update on this base cannot be folded. Changes nothing."""

    def weigh(self, num_examples: int, tau: int) -> float:
        """The weight that the manifest records, before clipping and normalising."""

    def fold(self, contribution: Contribution, delta: Tensor | Delta, now: float) -> None:
        """Take one update in. `delta` is only read, and not kept past the next flush.

        What a delta raises while it is walked through leaves the strategy of no use.
        """

    def due(self, now: float) -> bool:
        """Whether what is held must become a version. Never when nothing is held."""

    def deadline(self) -> float | None:
        """When `due` turns true by time alone, if it does."""

    def pending(self) -> int:
        """How many updates are held."""

    def flush(self, version: int, weights: Tensor) -> tuple[Tensor, tuple[Contribution, ...]]:
        """The weights of `version + 1` in a tensor never written again, and the manifest. Holds nothing after.

        `weights` are those of `version` and only read, on the device that this was made for. Raises ValueError when
        nothing is held.
        """

    def state_tensors(self) -> dict[str, Tensor]:
        """What a snapshot must hold, by name: the live tensors, which the next flush overwrites."""

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in what `state_tensors` gave. Raises StateError if it does not fit."""


def make_strategy(
    version: int,
    weights: Tensor,
    aggregation: AggregationSettings,
    staleness: StalenessSettings,
    server_optimizer: ServerOptimizerSettings,
    *,
    history: Mapping[int, Tensor] | None = None,
) -> Strategy:
    """The strategy that `aggregation.strategy` names, at `version`. `history` is what fedasync holds of the past.

    It folds where the `weights` lie.
    """
    if aggregation.strategy == "fedasync":
        return FedAsync(aggregation, staleness, held(version, weights, history, staleness))
    optimizer = make_optimizer(server_optimizer, weights.numel(), weights.device)
    return FedBuff(aggregation, staleness, optimizer, weights.device)

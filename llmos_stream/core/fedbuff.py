"""FedBuff (Nguyen et al. 2022): a version for each buffer of updates.

    Delta = sum_i n_i s(tau_i) c_i Delta_i / sum_i n_i

which is FedAvg (McMahan et al. 2017) when every tau is 0. A server optimiser then applies Delta.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core.buffer import Buffer
from llmos_stream.core.delta import Delta
from llmos_stream.core.optimizer import ServerOptimizer
from llmos_stream.core.staleness import discount
from llmos_stream.types import Contribution


class FedBuff:
    """See `strategy.Strategy` for the methods. The sum lies on `device`, as weights and moments must."""

    def __init__(
        self,
        aggregation: AggregationSettings,
        staleness: StalenessSettings,
        optimizer: ServerOptimizer,
        device: torch.device,
    ) -> None:
        self._staleness = staleness
        self._optimizer = optimizer
        self._buffer = Buffer(aggregation.buffer_size, aggregation.deadline_seconds, device)

    def check_base(self, base_version: int) -> None:
        """Any base will do: a delta is all that is needed."""

    def weigh(self, num_examples: int, tau: int) -> float:
        """`n_i s(tau_i)`."""
        return num_examples * discount(tau, self._staleness)

    def fold(self, contribution: Contribution, delta: Tensor | Delta, now: float) -> None:
        self._buffer.fold(contribution, delta, now)

    def due(self, now: float) -> bool:
        return self._buffer.due(now)

    def deadline(self) -> float | None:
        return self._buffer.deadline()

    def pending(self) -> int:
        return len(self._buffer.contributions)

    def flush(self, version: int, weights: Tensor) -> tuple[Tensor, tuple[Contribution, ...]]:
        total, examples, manifest = self._buffer.drain()
        return self._optimizer.apply(weights, total, examples), manifest

    def state_tensors(self) -> dict[str, Tensor]:
        return self._optimizer.state_tensors()

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        self._optimizer.load(tensors)

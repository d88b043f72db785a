"""FedAsync (Xie et al. 2019): every update is a version, mixed into the global model on arrival.

    w <- (1 - alpha s(tau)) w + alpha s(tau) (w_base + c Delta)

The client's model `w_base + Delta` is mixed in, not its delta, so the weights of the last
`aggregation.history + 1` versions are held: they are the published tensors, not copies, but that many
models must fit in memory (the GPU's, where that folds). An update on an older one is too stale. The
number of examples plays no part in this rule.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmos_stream.core.strategy import Strategy, Stretch
from llmos_stream.types import Contribution


class FedAsync(Strategy):
    """See `Strategy` for the methods."""

    formula = "(1 - alpha s(tau)) w + alpha s(tau) (w_base + c Delta)"
    share = "the rate at which the client's whole model was mixed in"
    needs_history = True
    contributions_per_version = 1
    uses_server_optimizer = False

    @property
    def holds(self) -> int:
        return 1

    def weigh(self, num_examples: int, discount: float) -> float:
        """`alpha s(tau_i)`, from the alpha of the settings every time."""
        return self.aggregation.mixing * discount

    def scale(self, item: Contribution) -> float:
        return item.clip

    def divisor(self, manifest: Sequence[Contribution]) -> None:
        return None

    def combine(self, stretch: Stretch) -> Tensor:
        """`(1 - rate) weights + rate (base + clip delta)`."""
        rate, (delta,), (base,) = stretch.manifest[0].weight, stretch.rows, stretch.bases
        torch.add(delta, base, out=stretch.out).mul_(rate)
        return stretch.out.add_(torch.mul(stretch.weights, 1.0 - rate, out=stretch.room))

    def shares(self, manifest: Sequence[Contribution]) -> list[float]:
        return [item.weight for item in manifest]

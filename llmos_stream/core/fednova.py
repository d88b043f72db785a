"""FedNova-like: updates of unequal local work, each as long as if it were of as many steps as the others.

    Delta   = tau_eff sum_i n_i s(tau_i) c_i Delta_i / e_i / sum_i n_i
    tau_eff = sum_i n_i e_i / sum_i n_i

e_i is of how many local steps update i is. A client with more data, or more epochs, makes more steps, and the mean of
the deltas is drawn to where its own loss is least; the mean of deltas a step is not (Wang et al. 2020, "Tackling the
Objective Inconsistency Problem in Heterogeneous Federated Optimization", section 4, whose a_i is a vector of e_i ones
here: that of plain local SGD. With local momentum or a proximal term it is an approximation). A stale update is scaled
by its discount, as in FedBuff.

e_i is what the client says in its metric `local_steps`. A client could make itself heavy by naming few steps, and the
others by naming many, so that e_i is taken to be no more than RATIO times the median of the version's updates, and no
less than that part of it; one that is not named is the median. What was taken stands in the manifest, so that a replay
needs no metrics.

Memory is that of the rules that hold updates (see `robust`).
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace

from llmos_stream.core.held import Held
from llmos_stream.core.strategy import Holding
from llmos_stream.types import Contribution

RATIO = 10.0
"""How far from the median the steps of one update may be."""


class FedNova(Holding):
    """See `Strategy` for the methods."""

    formula = "tau_eff sum_i n_i s(tau_i) c_i Delta_i / e_i / sum_i n_i, tau_eff = sum_i n_i e_i / sum_i n_i"
    share = "weight x clip x tau_eff / steps / sum of examples, what the delta was multiplied with"
    counts_steps = True

    @property
    def adapts(self) -> bool:
        return True

    def judge(self, held: Held) -> list[Contribution]:
        """Steps that are near those of the others."""
        named = [item.steps for item in held.manifest if item.steps is not None]
        middle = statistics.median(named) if named else 1.0
        return [
            replace(item, steps=middle if item.steps is None else min(max(item.steps, middle / RATIO), middle * RATIO))
            for item in held.manifest
        ]

    def scale(self, item: Contribution) -> float:
        return item.weight * item.clip / _steps(item)

    def divisor(self, manifest: Sequence[Contribution]) -> float:
        examples = float(sum(item.num_examples for item in manifest))
        return examples / (math.fsum(item.num_examples * _steps(item) for item in manifest) / examples)

    def mixing(self, manifest: Sequence[Contribution]) -> float:
        return min(1.0, sum(item.weight for item in manifest) / sum(item.num_examples for item in manifest))


def _steps(item: Contribution) -> float:
    return item.steps or 1.0

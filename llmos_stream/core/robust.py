"""Rules that a few hostile updates cannot move far. Each holds the updates of a version (`Strategy.holds`).

`c_i` is the clip factor and `s(tau_i)` the discount of a stale update. How many examples a client claims plays no part
in the median, the trimmed mean and Krum: who may claim any number could outvote the others. A stale update is scaled
by its discount first, so that it pulls less, and a buffer of stale ones gives a smaller step.

    median         Delta_j = median_i (s(tau_i) c_i Delta_ij)                                Yin et al. 2018, def. 1
    trimmed_mean   Delta_j = mean of those (s(tau_i) c_i Delta_ij) left when the floor(beta K)
                             largest and as many smallest are taken away                     Yin et al. 2018, def. 2
    krum           Delta   = s(tau_k) c_k Delta_k, k of the lowest score                     Blanchard et al. 2017
    multi_krum     Delta   = sum of s(tau_k) c_k Delta_k over the m of the lowest scores / m
                   score_i = sum of |c_i Delta_i - c_j Delta_j|^2 over the K - f - 2 nearest j != i
    norm_bound     Delta   = sum_i n_i s(tau_i) b_i Delta_i / sum_i n_i
                   b_i     = c_i min(1, bound / |c_i Delta_i|), bound = multiple x the median of all |c_i Delta_i|

The median of an even number is the mean of the two in the middle. Krum's scores are of the deltas as they were sent,
clipped: an old update is not near the others because it was made small. Of equal scores the one folded first wins.
Krum tolerates f of K >= 2 f + 3; with fewer no version is made, not even at the deadline. A bound that follows the
median norm is the one of Nguyen et al. 2022 (FLAME, section 4.3); a fixed one (Sun et al. 2019) is
`aggregation.clip_norm`, which every strategy takes.

The sources assume one update a client, and so it is here (`aggregation.one_of_a_client`): f, and beta K, allow for so
many hostile clients. One that sends a second update before a version is made has that refused, and so occupies the
memory of one. Where the setting is false, or a version's record is from before it came, a client may have several
places, and as many votes.

Memory: the quantized forms of `aggregation.buffer_size` updates (1 byte a parameter each for int8 and int4), the result
(4), and 8 MiB.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings
from llmos_stream.config.rules import KrumOptions, MultiKrumOptions, NormBoundOptions, TrimmedMeanOptions
from llmos_stream.core.flat import divisor
from llmos_stream.core.held import Held
from llmos_stream.core.strategy import Holding, Stretch, sum_of
from llmos_stream.types import Contribution


class _Robust(Holding):
    """Gives each client one vote."""

    @property
    def one_of_a_client(self) -> bool:
        return self.aggregation.one_of_a_client is not False


class _ByCoordinate(_Robust):
    """Makes each coordinate of the values s(tau) Delta there, and each entry of a buffer of the values sent."""

    combines_values = True

    def weigh(self, num_examples: int, discount: float) -> float:
        return discount

    def divisor(self, manifest: Sequence[Contribution]) -> None:
        return None

    def shares(self, manifest: Sequence[Contribution]) -> None:
        return None


class Median(_ByCoordinate):
    """The coordinate-wise median."""

    formula = "median_i (s(tau_i) c_i Delta_i), coordinate by coordinate"

    def combine(self, stretch: Stretch) -> Tensor:
        ordered, count = stretch.rows.sort(dim=0).values, len(stretch.rows)
        low, high = ordered[(count - 1) // 2], ordered[count // 2]
        return torch.add(low, high, out=stretch.out).mul_(0.5)


class TrimmedMean(_ByCoordinate):
    """The coordinate-wise mean without the largest and the smallest values."""

    Options = TrimmedMeanOptions
    formula = (
        "mean of the s(tau_i) c_i Delta_i without the floor(beta K) largest and smallest, coordinate by coordinate"
    )

    def combine(self, stretch: Stretch) -> Tensor:
        ordered, count = stretch.rows.sort(dim=0).values, len(stretch.rows)
        away = math.floor(self.options.beta * count)
        return sum_of(ordered[away : count - away], stretch.out).div_(divisor(count - 2 * away, stretch.out))


class Krum(_Robust):
    """The one update that has the nearest neighbours."""

    Options: ClassVar[type[Any]] = KrumOptions
    formula = "s(tau_k) c_k Delta_k of the update k that lies nearest to its K - f - 2 nearest others"
    share = "s(tau) x clip of the update that was chosen"

    def __init__(self, options: KrumOptions, aggregation: AggregationSettings) -> None:
        super().__init__(options, aggregation)
        size = self.buffer_size
        self.f = max((size - 3) // 2, 0) if options.f is None else options.f
        if size < self.least:
            raise ValueError(f"f {self.f} needs a buffer_size of at least {self.least}, it is {size}")

    @property
    def least(self) -> int:
        return 2 * self.f + 3

    def weigh(self, num_examples: int, discount: float) -> float:
        return discount

    def divisor(self, manifest: Sequence[Contribution]) -> float:
        return float(max(sum(item.weight > 0 for item in manifest), 1))

    def judge(self, held: Held) -> list[Contribution]:
        """Weight 0 for those not chosen."""
        distances, chosen = held.distances(), self._chosen(len(held))
        scores = [self._score(row, place) for place, row in enumerate(distances)]
        best = sorted(range(len(held)), key=scores.__getitem__)[:chosen]
        return [item if place in best else replace(item, weight=0.0) for place, item in enumerate(held.manifest)]

    def _chosen(self, count: int) -> int:
        return 1

    def _score(self, row: Sequence[float], place: int) -> float:
        others = sorted(distance for other, distance in enumerate(row) if other != place)
        return math.fsum(others[: max(len(row) - self.f - 2, 1)])


class MultiKrum(Krum):
    """The mean of the `m` updates that Krum would choose first."""

    Options = MultiKrumOptions
    formula = "mean of s(tau_k) c_k Delta_k over the m updates that lie nearest to their K - f - 2 nearest others"
    share = "s(tau) x clip / m of those that were chosen"

    def __init__(self, options: MultiKrumOptions, aggregation: AggregationSettings) -> None:
        super().__init__(options, aggregation)
        if options.m is not None and options.m > self.buffer_size - self.f:
            raise ValueError(f"m {options.m} is more than buffer_size - f ({self.buffer_size - self.f})")

    def _chosen(self, count: int) -> int:
        most = max(count - self.f, 1)
        return most if self.options.m is None else min(self.options.m, most)


class NormBound(_Robust):
    """FedBuff of deltas that are brought within a bound, which follows the median of their norms."""

    Options = NormBoundOptions
    formula = "sum_i n_i s(tau_i) b_i Delta_i / sum_i n_i, each b_i Delta_i no longer than multiple x the median norm"

    def judge(self, held: Held) -> list[Contribution]:
        """Clip factors that keep all within the bound."""
        norms = [item.clip * norm for item, norm in zip(held.manifest, held.norms(), strict=True)]
        bound = self.options.multiple * statistics.median(norms)
        return [
            replace(item, clip=item.clip * bound / norm) if norm > bound else item
            for item, norm in zip(held.manifest, norms, strict=True)
        ]

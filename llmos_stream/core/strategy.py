"""What a strategy is: the part of the aggregation that differs from one rule to another.

From accepted updates to a version is one pipeline (see `pipeline`): admit, check and clip, **weigh**, **combine**,
privatise, apply, guard. A strategy is the two stages in bold, and what the others must know of it, as capabilities:
nobody asks for its name.

There are two ways to combine. A strategy with `holds` 0 is a weighted sum, `sum_i f_i Delta_i / d`, taken as the
updates come, so that memory does not depend on how many there are: `scale` gives the `f_i`, `divisor` the `d`. One with
`holds` K keeps up to K updates in quantized form (1 byte a parameter for int8), and `combine` is given them
stretch by stretch.

What a strategy returns must be a function of what it is given, whatever the number of threads: no clock, no chance.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from llmos_stream.config import AggregationSettings
from llmos_stream.config.plugins import NoOptions
from llmos_stream.core.held import Held
from llmos_stream.core.participants import MOST
from llmos_stream.errors import Reason
from llmos_stream.types import Contribution


@dataclass(frozen=True, slots=True, eq=False)
class Stretch:
    """The same elements of all updates of a version.

    rows: [updates, elements], float32; row i is `scale(manifest[i])` times delta i. To be overwritten at will where
    there are several.
    weights: [elements], those of the parent; to be read only.
    bases: [elements] each, those of the version that update i was trained on; empty without `needs_history`.
    out: [elements], for the result. room: [elements], to be overwritten at will.
    """

    rows: Tensor
    manifest: Sequence[Contribution]
    weights: Tensor
    bases: Sequence[Tensor]
    out: Tensor
    room: Tensor


class Strategy:
    """One rule of aggregation. Subclass it and override what differs.

    As it stands it is FedBuff (Nguyen et al. 2022), which is FedAvg (McMahan et al. 2017) when every tau is 0. It
    divides by the examples and not by the weights: a stale buffer gives a smaller step, not a full one in a stale
    direction. It keeps nothing from version to version: what does is the server optimiser.
    """

    Options: ClassVar[type[Any]] = NoOptions
    """The pydantic model of `aggregation.options`."""
    formula: ClassVar[str] = "sum_i n_i s(tau_i) c_i Delta_i / sum_i n_i"
    """How a version is made, in one line."""
    share: ClassVar[str] = (
        "weight x clip / sum of examples, what the delta was multiplied with; they sum to 1 or less (stale)"
    )
    """What `shares` means, in one line."""

    needs_history: ClassVar[bool] = False
    """Whether it needs the weights of the versions that updates were trained on: `aggregation.history + 1` models."""
    contributions_per_version: ClassVar[int | None] = None
    """How many updates make a version, always; None: `aggregation.buffer_size`, or fewer at the deadline."""
    combines_values: ClassVar[bool] = False
    """Whether `combine` is the rule for buffers too, given their values as rows; else they are averaged."""
    uses_server_optimizer: ClassVar[bool] = True
    """Whether the result is a pseudo-gradient, which the server optimiser applies; else it is the new weights."""
    counts_steps: ClassVar[bool] = False
    """Whether contributions say of how many local steps they are."""

    def __init__(self, options: Any, aggregation: AggregationSettings) -> None:
        """Raises ValueError for options that do not go with `aggregation`."""
        self.options = options
        self.aggregation = aggregation

    @property
    def buffer_size(self) -> int:
        """`aggregation.buffer_size`; at most so many where it is unset."""
        return self.aggregation.buffer_size or MOST

    @property
    def holds(self) -> int:
        """How many updates are kept; 0 for a running sum."""
        return 0

    @property
    def adapts(self) -> bool:
        """Whether a version may be made of as many updates as clients take part, where nothing says how many."""
        return not self.holds and self.contributions_per_version is None

    @property
    def least(self) -> int:
        """Fewer updates than this make no version, whatever the deadline."""
        return 1

    @property
    def most_stale(self) -> int | None:
        """An update that is staler is refused, whatever `staleness.maximum` is; None: that alone counts."""
        return self.aggregation.history if self.needs_history else None

    @property
    def one_of_a_client(self) -> bool:
        """Whether a version takes one update of each client: a second one is refused."""
        return self.aggregation.one_of_a_client is True

    @property
    def usual_refusals(self) -> Set[Reason]:
        """Why updates are refused in the course of things here: that is counted and told, not warned of and kept."""
        return {Reason.ONE_A_ROUND} if self.one_of_a_client else frozenset()

    def weigh(self, num_examples: int, discount: float) -> float:
        """The weight that the manifest records; `discount` is s(tau), from 0 to 1. Finite and not negative."""
        return num_examples * discount

    def scale(self, item: Contribution) -> float:
        """What a delta is multiplied with before it is combined."""
        return item.weight * item.clip

    def divisor(self, manifest: Sequence[Contribution]) -> float | None:
        """What the combined deltas are divided by; None: nothing."""
        return float(sum(item.num_examples for item in manifest))  # the sum of 64-bit counts may need more bits

    def judge(self, held: Held) -> Sequence[Contribution]:
        """What the manifest shall say of the updates held: their weights and clip factors once all of them are known.

        Whatever adds up over elements (norms, distances) belongs here: it may round differently on another machine,
        so its outcome is recorded, and a replay takes it from the manifest.
        """
        return held.manifest

    def mixing(self, manifest: Sequence[Contribution]) -> float:
        """How far a version moves the buffers, from 0 to 1 (see `buffers`): `sum n s / sum n` where examples count."""
        return min(1.0, sum(item.weight for item in manifest) / (self.divisor(manifest) or 1.0))

    def combine(self, stretch: Stretch) -> Tensor:
        """Make one vector of the updates' rows, element by element. Needed where `holds` is not 0."""
        raise NotImplementedError

    def shares(self, manifest: Sequence[Contribution]) -> list[float] | None:
        """The part that each update has in the version (see `share`); None where the rule has no such number."""
        by = self.divisor(manifest) or 1.0
        return [self.scale(item) / by for item in manifest]


class Holding(Strategy):
    """Holds what a version is made of. As it stands, it adds the rows up."""

    @property
    def holds(self) -> int:
        return self.buffer_size

    def combine(self, stretch: Stretch) -> Tensor:
        return sum_of(stretch.rows, stretch.out)


def sum_of(rows: Tensor, out: Tensor) -> Tensor:
    """The sum of rows, one after the other: torch may add a dimension up in any order."""
    out.copy_(rows[0])
    for row in rows[1:]:
        out.add_(row)
    return out

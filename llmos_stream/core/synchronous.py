"""Synchronous FedAvg in rounds (McMahan et al. 2017), with more clients at work than a round needs.

    Delta = sum_i n_i c_i Delta_i / sum_i n_i    over K updates, one of each client, all on the newest version

A round is a version: all clients that take part train on the newest one, and the first K of them make the next. That
is over-selection as in Bonawitz et al. 2019, "Towards Federated Learning at Scale: System Design", where 1.3 K take
part; `participation.at_once` says how many do here. An update on an older version comes late and is refused. With a
quorum the round ends once its grace is over (see `buffer`), or at the deadline; without one it waits for all K, however
long they take.

Memory is that of a running sum: one model, whatever K is.
"""

from collections.abc import Set

from llmos_stream.config import AggregationSettings
from llmos_stream.config.rules import FedAvgOptions
from llmos_stream.core.strategy import Strategy
from llmos_stream.errors import Reason


class FedAvg(Strategy):
    """See `Strategy` for the methods."""

    Options = FedAvgOptions
    formula = "sum_i n_i c_i Delta_i / sum_i n_i, over one update of each of K clients on the newest version"

    def __init__(self, options: FedAvgOptions, aggregation: AggregationSettings) -> None:
        super().__init__(options, aggregation)
        self._drops = options.late == "drop"

    @property
    def adapts(self) -> bool:
        return False

    @property
    def least(self) -> int:
        return self.aggregation.quorum or self.buffer_size

    @property
    def most_stale(self) -> int:
        return 0

    @property
    def one_of_a_client(self) -> bool:
        return True

    @property
    def usual_refusals(self) -> Set[Reason]:
        return {Reason.TOO_STALE, Reason.ONE_A_ROUND} if self._drops else frozenset()

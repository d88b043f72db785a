"""What one client's update may be at most, by what the clients have sent lately: nobody outweighs the others.

Two numbers of each client are remembered, those of its last update: its delta's L2 norm, after clipping, and the
number of examples that it counted for. The middle of them is the median over the clients; of an even number, the
geometric mean of the two in the middle, so that of two clients neither sets it alone. From one version to the next hold

    norm       clip_multiple x middle norm; a longer delta is scaled down to it
    examples   max(3, (K - 1) s / (1 - s)) x middle number of examples, with s = max_share; what an update claims
               beyond that counts for nothing

so that of K updates the others of which are of the middle size, none has more than the share s; among two or three,
none counts for more than 3 times the middle. There are no limits before LEAST updates, nor on examples where one update
makes a version. Both limits go into the rule that the version records (`limits`), and what they made of an update into
its contribution (`clip`, `num_examples`), so that a replay needs no history.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from llmos_stream.config import AggregationSettings

LEAST = 4
"""Updates that must have been seen before anything is limited."""
CLIENTS_KEPT = 64
_LEAST_RATIO = 3.0


class Limits:
    """The limits on the updates of one version, and what the next ones come from. `capacity` updates make a version."""

    def __init__(self, aggregation: AggregationSettings, capacity: int) -> None:
        self._share = aggregation.max_share
        self._multiple = aggregation.clip_multiple
        self._ratio = self._ratio_at(capacity)
        self._clients: OrderedDict[str, tuple[float, int]] = OrderedDict()
        self._seen = 0
        self.norm: float | None = None
        """No delta is longer."""
        self.examples: int | None = None
        """No update counts for more."""

    def resize(self, capacity: int) -> None:
        """So many updates make the version that is begun now."""
        self._ratio = self._ratio_at(capacity)
        self.renew()

    def _ratio_at(self, capacity: int) -> float:
        share = self._share
        if capacity <= 1 or share == 1:
            return math.inf
        return max(_LEAST_RATIO, (capacity - 1) * share / (1 - share))

    @property
    def measures(self) -> bool:
        """Whether norms are asked for."""
        return self._multiple > 0

    def counted(self, num_examples: int) -> int:
        """For how many examples an update counts that claims so many."""
        return num_examples if self.examples is None else min(num_examples, self.examples)

    def note(self, client_id: str, norm: float, num_examples: int) -> None:
        """An update was folded, clipped to this norm and counted for so many examples."""
        self._clients.pop(client_id, None)
        self._clients[client_id] = norm, num_examples
        if len(self._clients) > CLIENTS_KEPT:
            self._clients.popitem(last=False)
        self._seen = min(self._seen + 1, LEAST)

    def renew(self) -> None:
        """Take what was noted into account: a version is made."""
        if self._seen < LEAST:
            return
        norm = _middle([norm for norm, _ in self._clients.values() if norm > 0])
        examples = _middle([count for _, count in self._clients.values()])
        self.norm = None if norm is None or not self._multiple else self._multiple * norm
        self.examples = None if examples is None or self._ratio == math.inf else max(1, int(self._ratio * examples))

    def record(self) -> dict[str, float]:
        """The limits in force, as a version's rule records them."""
        found: dict[str, float | None] = {"norm": self.norm, "examples": self.examples}
        return {name: limit for name, limit in found.items() if limit is not None}

    def dump(self) -> dict[str, list[float]]:
        """What is remembered of the clients, as JSON can say it, the longest silent first."""
        return {client_id: list(known) for client_id, known in self._clients.items()}

    def load(self, dumped: Mapping[str, object]) -> None:
        """Go on from what `dump` gave; what is none of it is left out."""
        for client_id, known in list(dumped.items())[:CLIENTS_KEPT]:
            match known:
                case [(int() | float()) as norm, int() as count] if 0 <= norm < math.inf and 0 < count < 2**63:
                    self._clients[client_id] = float(norm), count
        self._seen = LEAST if self._clients else 0
        self.renew()


def _middle(values: Sequence[float]) -> float | None:
    if not values:
        return None
    ordered, half = sorted(values), len(values) // 2
    return float(ordered[half]) if len(values) % 2 else math.sqrt(ordered[half - 1]) * math.sqrt(ordered[half])

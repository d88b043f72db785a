"""The mathematics of DESIGN section 3 once more: float64, one update after the other, nothing clever."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
_ALL = slice(None)


class Oracle:
    """Folds the updates of one version after the other. `rule` is the plain dictionary of a version's head."""

    def __init__(self, rule: Mapping[str, Any], weights: Vector) -> None:
        self._aggregation = rule["aggregation"]
        self._staleness = rule["staleness"]
        self._optimizer = rule["server_optimizer"]
        self.history = [weights]
        self._moving_sum = np.zeros_like(weights)
        self._first = np.zeros_like(weights)
        self._second = np.full_like(weights, self._optimizer["epsilon"] ** 2)

    def fold(self, updates: Sequence[tuple[int, int, int, Vector]], here: slice = _ALL) -> Vector:
        """The next version, from `(base_version, staleness, num_examples, delta)` of each of its updates.

        They are of the elements `here`, and nothing else moves.
        """
        fresh: Vector
        weights = self.history[-1]
        if self._aggregation["strategy"] == "fedasync":
            ((base, tau, _, delta),) = updates
            rate = self._aggregation["mixing"] * self._discount(tau)
            fresh = (1 - rate) * weights + rate * (self.history[base] + self._clipped(delta))
        else:
            total = np.zeros_like(weights[here])
            for _, tau, examples, delta in updates:
                total += examples * self._discount(tau) * self._clipped(delta)
            fresh = weights.copy()
            fresh[here] += self._step(total / sum(examples for _, _, examples, _ in updates), here)
        self.history.append(fresh)
        return fresh

    def _discount(self, tau: int) -> float:
        a, b = self._staleness["a"], self._staleness["b"]
        match self._staleness["kind"]:
            case "polynomial":
                return float(1 / (1 + tau) ** a)
            case "hinge":
                return 1.0 if tau <= b else float(1 / (a * (tau - b) + 1))
            case _:
                return 1.0

    def _clipped(self, delta: Vector) -> Vector:
        limit = self._aggregation["clip_norm"]
        norm = float(np.sqrt((delta**2).sum()))
        return delta if limit is None or norm <= limit else delta * float(limit / norm)

    def _step(self, delta: Vector, here: slice) -> Vector:
        rule = self._optimizer
        if rule["name"] == "sgd":
            self._moving_sum[here] = rule["momentum"] * self._moving_sum[here] + delta
            return self._scaled(self._moving_sum[here])
        assert rule["name"] == "adam"
        self._first[here] = rule["beta1"] * self._first[here] + (1 - rule["beta1"]) * delta
        self._second[here] = rule["beta2"] * self._second[here] + (1 - rule["beta2"]) * delta**2
        adapted: Vector = self._first[here] / (np.sqrt(self._second[here]) + rule["epsilon"])
        return self._scaled(adapted)

    def _scaled(self, step: Vector) -> Vector:
        return step * float(self._optimizer["lr"])

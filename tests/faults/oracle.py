"""The mathematics of DESIGN section 3 once more: float64, one update after the other, nothing clever."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


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

    def fold(self, updates: Sequence[tuple[int, int, Vector]]) -> Vector:
        """The next version, from `(base_version, num_examples, delta)` of each of its updates."""
        fresh: Vector
        present = len(self.history) - 1
        weights = self.history[-1]
        if self._aggregation["strategy"] == "fedasync":
            ((base, _, delta),) = updates
            rate = self._aggregation["mixing"] * self._discount(present - base)
            fresh = (1 - rate) * weights + rate * (self.history[base] + self._clipped(delta))
        else:
            total = np.zeros_like(weights)
            for base, examples, delta in updates:
                total += examples * self._discount(present - base) * self._clipped(delta)
            fresh = weights + self._step(total / sum(examples for _, examples, _ in updates))
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

    def _step(self, delta: Vector) -> Vector:
        rule = self._optimizer
        if rule["name"] == "sgd":
            self._moving_sum = rule["momentum"] * self._moving_sum + delta
            return self._scaled(self._moving_sum)
        assert rule["name"] == "adam"
        self._first = rule["beta1"] * self._first + (1 - rule["beta1"]) * delta
        self._second = rule["beta2"] * self._second + (1 - rule["beta2"]) * delta**2
        adapted: Vector = self._first / (np.sqrt(self._second) + rule["epsilon"])
        return self._scaled(adapted)

    def _scaled(self, step: Vector) -> Vector:
        return step * float(self._optimizer["lr"])

"""The mathematics of aggregation once more: float64, plain Python, one element at a time, nothing shared."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

Vector = list[float]


def s(kind: str, tau: int, a: float, b: float) -> float:
    if kind == "constant":
        return 1.0
    if kind == "polynomial":
        return 1.0 / math.pow(1.0 + tau, a)
    if tau <= b:
        return 1.0
    return 1.0 / (a * (tau - b) + 1.0)


def norm(vector: Sequence[float]) -> float:
    largest = max((abs(x) for x in vector), default=0.0)
    if largest == 0.0:
        return 0.0
    return largest * math.sqrt(math.fsum((x / largest) ** 2 for x in vector))


def clipped(vector: Sequence[float], limit: float | None) -> Vector:
    length = norm(vector)
    if limit is None or length <= limit:
        return list(vector)
    return [x * limit / length for x in vector]


def fedavg(weights: Sequence[float], deltas: Sequence[Sequence[float]], examples: Sequence[int]) -> Vector:
    """McMahan et al. 2017, algorithm 1: the mean of the clients' models, weighted by their examples."""
    n = sum(examples)
    return [
        sum(n_k / n * (w + delta[j]) for n_k, delta in zip(examples, deltas, strict=True))
        for j, w in enumerate(weights)
    ]


def pseudo_gradient(deltas: Sequence[Sequence[float]], examples: Sequence[int], discounts: Sequence[float]) -> Vector:
    total = [0.0] * len(deltas[0])
    for delta, n, factor in zip(deltas, examples, discounts, strict=True):
        for j, value in enumerate(delta):
            total[j] += n * factor * value
    return [value / sum(examples) for value in total]


@dataclass
class Optimizer:
    """Algorithm 2 of Reddi et al. 2021, and SGD with momentum."""

    name: str
    lr: float
    momentum: float
    beta1: float
    beta2: float
    epsilon: float
    nesterov: bool = False
    m: Vector = field(default_factory=list)
    v: Vector = field(default_factory=list)
    close: bool = False
    """Whether Yogi's sign was once taken of a difference too small for float32 to tell."""

    def apply(self, x: Sequence[float], delta: Sequence[float]) -> Vector:
        if not self.m:
            self.m = [0.0] * len(x)
            self.v = [self.epsilon**2] * len(x)
        moved = []
        for j, d in enumerate(delta):
            if self.name == "sgd":
                self.m[j] = self.momentum * self.m[j] + d
                moved.append(x[j] + self.lr * (d + self.momentum * self.m[j] if self.nesterov else self.m[j]))
                continue
            self.m[j] = self.beta1 * self.m[j] + (1 - self.beta1) * d
            self.v[j] = self._second_moment(self.v[j], d * d)
            moved.append(x[j] + self.lr * self.m[j] / (math.sqrt(self.v[j]) + self.epsilon))
        return moved

    def _second_moment(self, v: float, square: float) -> float:
        if self.name == "adagrad":
            return v + square
        if self.name == "adam":
            return self.beta2 * v + (1 - self.beta2) * square
        self.close = self.close or math.isclose(v, square, rel_tol=1e-4)
        sign = (v > square) - (v < square)
        return v - (1 - self.beta2) * square * sign


@dataclass
class Fadas:
    """Wang et al. 2024 (FADAS), algorithm 1, with the delay-adaptive rate of its section 4."""

    lr: float
    beta1: float
    beta2: float
    epsilon: float
    tau_c: int
    m: dict[int, float] = field(default_factory=dict)
    v: dict[int, float] = field(default_factory=dict)
    largest: dict[int, float] = field(default_factory=dict)

    def apply(self, x: Sequence[float], delta: Sequence[float], taus: Sequence[int]) -> Vector:
        rate = self.lr if max(taus) <= self.tau_c else min(self.lr, 1 / max(taus))
        moved = []
        for j, d in enumerate(delta):
            self.m[j] = self.beta1 * self.m.get(j, 0.0) + (1 - self.beta1) * d
            self.v[j] = self.beta2 * self.v.get(j, self.epsilon**2) + (1 - self.beta2) * d * d
            self.largest[j] = max(self.largest.get(j, self.epsilon**2), self.v[j])
            moved.append(x[j] + rate * self.m[j] / (math.sqrt(self.largest[j]) + self.epsilon))
        return moved


def delayed_nesterov(
    x: Sequence[float], deltas: Sequence[Sequence[float]], lr: float, beta: float, n: int, c: float
) -> list[Vector]:
    """Liu et al. 2024, algorithm 3, coordinate by coordinate, as the paper counts: t from 0, descent direction g."""
    models = [list(x) for _ in deltas]
    for j, begun in enumerate(x):
        theta, m, total = begun, 0.0, 0.0
        for t, delta in enumerate(deltas):
            g = -delta[j]
            total += g
            if (t + 1) % n == 0:
                m = beta * m + total / n
                theta = theta - lr * ((1 - c * n + c) * beta * m + g / n)
                total = 0.0
            else:
                theta = theta - lr * (c * beta * m + g / n)
            models[t][j] = theta
    return models


def fednova(
    deltas: Sequence[Sequence[float]], examples: Sequence[int], steps: Sequence[float], discounts: Sequence[float]
) -> Vector:
    """Wang et al. 2020 (FedNova), equation 5 of the update rule: tau_eff times the mean of the normalised deltas."""
    n = sum(examples)
    tau_eff = sum(n_i / n * e for n_i, e in zip(examples, steps, strict=True))
    return [
        tau_eff
        * sum(
            n_i / n * s_i * delta[j] / e for n_i, s_i, delta, e in zip(examples, discounts, deltas, steps, strict=True)
        )
        for j in range(len(deltas[0]))
    ]


@dataclass
class Sent:
    """An update as an oracle knows it."""

    client: str
    sequence: int
    base: int
    examples: int
    delta: Vector
    now: float


@dataclass
class FedBuff:
    """A whole federation: keeps everything for ever and computes each version from scratch."""

    weights: Vector
    discount: Callable[[int], float]
    capacity: int
    deadline: float
    maximum: int
    max_examples: int
    clip: float | None
    version: int = 0
    buffer: list[Sent] = field(default_factory=list)
    folded: set[tuple[str, int]] = field(default_factory=set)

    def fold(self, sent: Sent) -> str:
        """What becomes of it: `folded`, `version`, `duplicate` or the reason of the refusal."""
        if (sent.client, sent.sequence) in self.folded:
            return "duplicate"
        refusal = refusal_of(sent, self.version, self.maximum, self.max_examples, len(self.weights))
        if refusal is not None:
            return refusal
        self.buffer.append(sent)
        self.folded.add((sent.client, sent.sequence))
        if len(self.buffer) == self.capacity:
            self.flush()
            return "version"
        return "version" if self.tick(sent.now) else "folded"

    def tick(self, now: float) -> bool:
        if not self.buffer or now < self.buffer[0].now + self.deadline:
            return False
        self.flush()
        return True

    def flush(self) -> None:
        gradient = pseudo_gradient(
            [clipped(sent.delta, self.clip) for sent in self.buffer],
            [sent.examples for sent in self.buffer],
            [self.discount(self.version - sent.base) for sent in self.buffer],
        )
        self.weights = [w + g for w, g in zip(self.weights, gradient, strict=True)]
        self.version += 1
        self.buffer = []


@dataclass
class FedAsync:
    """Xie et al. 2019, with every model ever published at hand."""

    models: list[Vector]
    discount: Callable[[int], float]
    alpha: float
    clip: float | None = None

    def fold(self, base: int, delta: Sequence[float]) -> None:
        rate = self.alpha * self.discount(len(self.models) - 1 - base)
        client = [w + d for w, d in zip(self.models[base], clipped(delta, self.clip), strict=True)]
        self.models.append([(1 - rate) * w + rate * c for w, c in zip(self.models[-1], client, strict=True)])


def refusal_of(sent: Sent, version: int, maximum: int, max_examples: int, numel: int) -> str | None:
    """The reason to refuse an update that is new, if there is one."""
    if sent.examples < 1 or sent.examples > max_examples:
        return "bad_num_examples"
    if sent.base < 0 or sent.base > version:
        return "unknown_base_version"
    if version - sent.base > maximum:
        return "too_stale"
    if len(sent.delta) != numel:
        return "wrong_layout"
    if any(math.isnan(x) or math.isinf(x) for x in sent.delta):
        return "not_finite"
    return None


def patience_spent(values: dict[int, float], mode: str, patience: int) -> bool:
    """Whether the last `patience` versions, in order, brought no new best. `values` are distinct."""
    best = math.inf if mode == "min" else -math.inf
    since = 0
    for version in sorted(values):
        value = values[version]
        better = value < best if mode == "min" else value > best
        best, since = (value, 0) if better else (best, since + 1)
    return since >= patience

"""Buffers are averaged as values: within the range of what was sent, and untouched where nobody changed them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from llmos_stream.codec import (
    Layout,
    Residual,
    add_residual,
    apply_delta,
    decode,
    encode,
    encode_delta,
    fits_delta,
    spec_of,
    with_buffers,
)
from llmos_stream.config import AggregationSettings, CodecSettings, ServerOptimizerSettings, StalenessSettings
from llmos_stream.core import NewVersion, Refused, State, Update, release, step
from llmos_stream.core.replay import Replay
from llmos_stream.errors import Reason
from llmos_stream.types import CodecId, CodecSpec, Contribution, TensorKind, TensorSpec
from tests.core.builders import head, rule_of, start

PARAMETERS = 40
NAMED = {
    "var": torch.tensor([1e-3, 1.0, 0.0, 3e38]),
    "mask": torch.tensor([0.0, -math.inf, math.inf, -0.0]),
    "seen": torch.tensor([math.inf, -math.inf]),
}
LAYOUT = Layout.of({"weight": torch.zeros(PARAMETERS), **NAMED}, NAMED)
SENT = tuple(range(PARAMETERS, PARAMETERS + 4))
"""Places of `var`, which clients change."""


def _begin(aggregation: AggregationSettings, optimizer: ServerOptimizerSettings, staleness: StalenessSettings) -> State:
    weights = LAYOUT.flatten({"weight": torch.ones(PARAMETERS), **NAMED})
    return start(
        weights,
        LAYOUT.digest,
        aggregation=aggregation,
        server_optimizer=optimizer,
        staleness=staleness,
        buffers=LAYOUT.buffers,
    )


def _update(delta: Tensor, buffers: Tensor | None, sequence: int = 0, base: int = 0, examples: int = 1) -> Update:
    return Update(head(sequence, base, examples, layout=LAYOUT.digest), 0, sequence, delta, buffers)


def _buffers(weights: Tensor) -> Tensor:
    return weights[PARAMETERS:].clone()


def _folded(state: State, update: Update) -> tuple[State, NewVersion | None]:
    state, effects = step(state, update, now=0.0)
    assert not isinstance(effects[0], Refused), effects[0]
    return state, next((effect for effect in effects if isinstance(effect, NewVersion)), None)


def _same(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.view(torch.int32), other.view(torch.int32))


def test_the_weighted_mean_is_mixed_in() -> None:
    """x = (1 - m) x + m sum w v / sum w, with w = n s and m = sum w / sum n."""
    state = _begin(
        AggregationSettings(buffer_size=2),
        ServerOptimizerSettings(lr=10.0),
        StalenessSettings(kind="hinge", a=1.0, b=0),
    )
    for sequence in range(2):
        state, _ = _folded(state, _update(torch.zeros(PARAMETERS), _buffers(state.weights), sequence))
    assert state.version == 1
    one, other = _buffers(state.weights), _buffers(state.weights)
    one[1], other[1] = 5.0, 2.0
    state, _ = _folded(state, _update(torch.zeros(PARAMETERS), one, 2, base=0, examples=30))  # s = 1/2
    state, new = _folded(state, _update(torch.zeros(PARAMETERS), other, 3, base=1, examples=10))
    assert new is not None
    mixing, mean = 25 / 40, (15 * 5.0 + 10 * 2.0) / 25
    assert new.weights[PARAMETERS + 1] == torch.tensor((1 - mixing) * 1.0 + mixing * mean)


def test_fedasync_mixes_in_by_its_rate() -> None:
    state = _begin(
        AggregationSettings(strategy="fedasync", mixing=0.25), ServerOptimizerSettings(), StalenessSettings()
    )
    values = _buffers(state.weights)
    values[1] = 5.0
    state, new = _folded(state, _update(torch.zeros(PARAMETERS), values))
    assert new is not None
    assert new.weights[PARAMETERS + 1] == 2.0


@pytest.mark.parametrize(("strategy", "expected"), [("median", 2.0), ("trimmed_mean", 3.0), ("krum", 2.0)])
def test_a_robust_rule_is_robust_in_buffers_too(strategy: str, expected: float) -> None:
    options = {"beta": 0.2} if strategy == "trimmed_mean" else {}
    state = _begin(
        AggregationSettings(strategy=strategy, buffer_size=5, options=options, one_of_a_client=False),
        ServerOptimizerSettings(),
        StalenessSettings(),
    )
    new = None
    for sequence, value in enumerate([2.0, 2.0, 2.0, 5.0, 1e30]):
        values = _buffers(state.weights)
        values[1] = value
        state, new = _folded(state, _update(torch.full((PARAMETERS,), min(value, 9.0)), values, sequence))
    assert new is not None
    assert new.weights[PARAMETERS + 1] == expected


def test_an_observer_that_had_seen_nothing_becomes_what_was_measured() -> None:
    state = _begin(AggregationSettings(buffer_size=2), ServerOptimizerSettings(), StalenessSettings())
    measured, idle = _buffers(state.weights), _buffers(state.weights)
    measured[-2:] = torch.tensor([-3.0, 7.0])
    state, _ = _folded(state, _update(torch.zeros(PARAMETERS), idle, 0, examples=1000))
    state, new = _folded(state, _update(torch.zeros(PARAMETERS), measured, 1))
    assert new is not None
    assert new.weights[-2:].tolist() == [-3.0, 7.0]


@pytest.mark.parametrize(("place", "value"), [(0, math.nan), (1, math.inf), (5, math.inf), (8, -math.inf)])
def test_what_became_infinite_is_refused_with_its_name(place: int, value: float) -> None:
    state = _begin(AggregationSettings(), ServerOptimizerSettings(), StalenessSettings())
    values = _buffers(state.weights)
    values[place] = value
    _, (refused,) = step(state, _update(torch.zeros(PARAMETERS), values), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.NOT_FINITE
    name = "var" if place < 4 else "mask" if place < 8 else "seen"
    assert refused.detail.startswith(f"{name} became {value}, it was ")


@pytest.mark.parametrize("values", [None, torch.zeros(9), torch.zeros(11)])
def test_buffers_of_another_length_are_refused(values: Tensor | None) -> None:
    state = _begin(AggregationSettings(), ServerOptimizerSettings(), StalenessSettings())
    _, (refused,) = step(state, _update(torch.zeros(PARAMETERS), values), now=0.0)
    assert isinstance(refused, Refused)
    assert refused.reason is Reason.WRONG_LAYOUT


@pytest.mark.parametrize("strategy", ["fedbuff", "fedasync", "median"])
def test_a_model_of_buffers_alone(strategy: str) -> None:
    layout = Layout.of({"var": torch.ones(3)}, ["var"])
    state = start(
        torch.ones(3),
        layout.digest,
        aggregation=AggregationSettings(strategy=strategy, buffer_size=1, mixing=1.0),
        server_optimizer=ServerOptimizerSettings(name="sgd"),
        buffers=layout.buffers,
    )
    update = Update(head(layout=layout.digest), 0, 0, torch.zeros(0), torch.full((3,), 4.0))
    state, (_, new) = step(state, update, now=0.0)
    assert isinstance(new, NewVersion)
    assert new.weights.tolist() == [4.0, 4.0, 4.0]


STRATEGIES = ["fedbuff", "fedasync", "median", "trimmed_mean", "krum", "multi_krum", "norm_bound"]
OPTIMIZERS = [
    ServerOptimizerSettings(),
    ServerOptimizerSettings(lr=3.0, momentum=0.9),
    ServerOptimizerSettings(name="adam", lr=0.5),
    ServerOptimizerSettings(name="yogi", lr=0.5),
    ServerOptimizerSettings(name="adagrad", lr=0.5),
]
CHAINS = [
    None,
    CodecSpec(CodecId.INT4, {"block": 256, "stochastic": 0}),
    CodecSpec(CodecId.INT8, {"block": 32, "stochastic": 0}),
]


@dataclass
class Hull:
    """The range of each buffer's entry: that of version 0's and of all that was sent, where it was finite."""

    low: Tensor
    high: Tensor

    def widen(self, values: Tensor) -> None:
        known = values.isfinite()
        self.low = torch.where(known, torch.minimum(self.low, values), self.low)
        self.high = torch.where(known, torch.maximum(self.high, values), self.high)

    def holds(self, values: Tensor) -> bool:
        return bool(((self.low <= values) & (values <= self.high) | ~values.isfinite()).all())


def _travelled(update: Update, codec: CodecSpec) -> Update:
    assert isinstance(update.delta, Tensor)
    assert update.buffers is not None
    generator = torch.Generator().manual_seed(update.head.sequence)
    parts = list(with_buffers(encode(update.delta, codec, generator=generator), update.buffers))
    buffers = torch.empty_like(update.buffers)
    delta = decode(parts, codec, PARAMETERS, buffers=buffers)
    return replace(update, delta=delta, buffers=buffers)


def _published(parent: Tensor, new: NewVersion, residual: Residual | None, chain: CodecSpec | None) -> Residual | None:
    """Write over the weights of `new` what readers will have."""
    here, after = parent[:PARAMETERS], new.weights[:PARAMETERS]
    if chain is None or not fits_delta(here, after):
        add_residual(after, residual)
        return None
    reader = parent.clone()
    frames, residual = encode_delta(here, after, residual, chain)
    apply_delta(reader[:PARAMETERS], list(with_buffers(frames, new.weights[PARAMETERS:])), chain, reader[PARAMETERS:])
    assert _same(reader, new.weights)
    return residual


@settings(deadline=None, max_examples=60)
@given(
    strategy=st.sampled_from(STRATEGIES),
    optimizer=st.sampled_from(OPTIMIZERS),
    codec=st.sampled_from(["float32", "bfloat16", "int8", "int4", "topk", "topk2"]),
    chain=st.sampled_from(CHAINS),
    kind=st.sampled_from(["constant", "polynomial", "hinge"]),
    sent=st.lists(
        st.tuples(
            st.lists(st.floats(0, 2.0**127, width=32), min_size=4, max_size=4),
            st.integers(0, 3),  # staleness
            st.integers(1, 10**6),
            st.sampled_from([0.0, 1e-3, 10.0]),  # how large a delta
        ),
        min_size=5,
        max_size=25,
    ),
)
def test_buffers_stay_in_the_hull_of_what_was_sent(
    strategy: str,
    optimizer: ServerOptimizerSettings,
    codec: str,
    chain: CodecSpec | None,
    kind: str,
    sent: Sequence[tuple[list[float], int, int, float]],
) -> None:
    at_once = 1 if strategy == "fedbuff" else 5
    aggregation = AggregationSettings(strategy=strategy, buffer_size=at_once, one_of_a_client=False)
    state = _begin(aggregation, optimizer, StalenessSettings(kind=kind, maximum=5))
    first = _buffers(state.weights)
    hull = Hull(first.clone(), first.clone())
    spec, residual, before = spec_of(CodecSettings(name=codec)), None, state.weights
    for sequence, (var, staleness, examples, size) in enumerate(sent):
        base = max(state.version - staleness, 0)
        values = first.clone()
        values[:4] = torch.tensor(var)
        hull.widen(values)
        delta = torch.randn(PARAMETERS, generator=torch.Generator().manual_seed(sequence)) * size
        update = _travelled(_update(delta, values, sequence, base, examples), spec)
        state, new = _folded(state, update)
        if new is None:
            continue
        residual = _published(before, new, residual, chain)
        state = release(state, new.weights)
        before, now = new.weights, _buffers(new.weights)
        assert hull.holds(now)
        assert _same(now[4:], first[4:])


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_replay_under_the_same_rule_gives_the_same_bytes(strategy: str) -> None:
    rule = rule_of(AggregationSettings(strategy=strategy, buffer_size=5, one_of_a_client=False))
    state = _begin(rule.aggregation, rule.server_optimizer, rule.staleness)
    replay = Replay(0, state.weights.clone(), buffers=LAYOUT.buffers)
    replay.follow(rule)
    for sequence in range(15):
        values = _buffers(state.weights)
        values[:4] = torch.rand(4, generator=torch.Generator().manual_seed(sequence))
        update = _update(torch.full((PARAMETERS,), 0.1 * sequence), values, sequence, state.version, 1 + sequence)
        state, effects = step(state, update, now=0.0)
        contribution = effects[0].contribution  # type: ignore[union-attr]
        replay.fold(contribution, update, contribution.staleness, replay.weights)
        if len(effects) > 1:
            replay.flush()
            assert _same(replay.weights, state.weights)
    assert replay.version == state.version > 0


@pytest.mark.parametrize("strategy", ["fedbuff", "norm_bound", "median"])
def test_the_same_bytes_for_any_number_of_threads(strategy: str) -> None:
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 4):
            torch.set_num_threads(threads)
            found.append(list(_run(strategy)))
    finally:
        torch.set_num_threads(before)
    assert all(_same(one, other) for one, other in zip(*found, strict=True))


def _run(strategy: str) -> Iterator[Tensor]:
    count = 100_000
    specs = (TensorSpec("var", (count,), "float32", TensorKind.BUFFER),)
    state = start(
        torch.ones(count + 1),
        aggregation=AggregationSettings(strategy=strategy, buffer_size=3, one_of_a_client=False),
        buffers=specs,
    )
    for sequence in range(6):
        values = torch.rand(count, generator=torch.Generator().manual_seed(sequence))
        update = Update(head(sequence, state.version, 3 + sequence), 0, sequence, torch.ones(1), values)
        state, (_, *new) = step(state, update, now=0.0)
        if new and isinstance(new[0], NewVersion):
            yield new[0].weights


def test_a_manifest_in_which_all_weigh_nothing_changes_no_buffer() -> None:
    weights = LAYOUT.flatten({"weight": torch.ones(PARAMETERS), **NAMED})
    pipeline = rule_of(AggregationSettings(buffer_size=2)).pipeline(0, weights, buffers=LAYOUT.buffers)
    for sequence in range(2):
        item = Contribution("ann", sequence, 0, sequence, 1, 0, 0.0, 1.0, bytes(32))
        pipeline.fold(item, torch.ones(PARAMETERS), 0.0, torch.full((10,), 9.0))
    new, _ = pipeline.flush(0, weights)
    assert _same(_buffers(new), _buffers(weights))

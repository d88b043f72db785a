"""FADAS and delayed Nesterov through `step`, against the papers written out in float64."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings, Settings, StalenessSettings
from llmos_stream.core import NewVersion, State, step
from llmos_stream.core.flat import BLOCK
from llmos_stream.errors import ConfigError
from tests.core import oracles
from tests.core.builders import rule_of, same_bytes, start, tensors_in, update

vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)
runs = st.lists(st.tuples(vectors, st.integers(0, 6)), min_size=1, max_size=12)
RULES: dict[str, dict[str, Any]] = {
    "fadas": {"name": "fadas", "lr": 0.3, "options": {"delay": 1}},
    "delayed_nesterov": {"name": "delayed_nesterov", "lr": 0.7, "momentum": 0.9, "options": {"period": 3}},
}
CONSTANT = StalenessSettings(kind="constant")


def begin(weights: torch.Tensor, optimizer: dict[str, Any], size: int = 1, **rest: Any) -> State:
    return start(
        weights,
        aggregation=AggregationSettings(buffer_size=size, clip_multiple=0.0),
        staleness=CONSTANT,
        server_optimizer=ServerOptimizerSettings.model_validate(optimizer),
        **rest,
    )


def fold(state: State, delta: list[float] | torch.Tensor, sequence: int, tau: int = 0) -> NewVersion:
    state, effects = step(state, update(delta, sequence, max(0, state.version - tau)), now=0.0)
    assert isinstance(effects[-1], NewVersion)
    return effects[-1]


@given(vectors, runs, st.integers(0, 4), st.floats(1e-3, 1), st.floats(0, 0.95), st.floats(0, 0.999))
def test_fadas_is_amsgrad_with_a_smaller_step_beyond_the_delay(
    weights: list[float], run: list[tuple[list[float], int]], delay: int, lr: float, beta1: float, beta2: float
) -> None:
    rule = {"name": "fadas", "lr": lr, "beta1": beta1, "beta2": beta2, "epsilon": 0.1, "options": {"delay": delay}}
    state, oracle = begin(torch.tensor(weights), rule), oracles.Fadas(lr, beta1, beta2, 0.1, delay)
    expected = weights
    for i, (delta, tau) in enumerate(run):
        expected = oracle.apply(expected, delta, [min(tau, state.version)])
        assert fold(state, delta, i, tau).weights.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_fadas_goes_by_the_stalest_update_of_a_version() -> None:
    """The rates are 1 and 1 / 4: with beta1 0 and epsilon 1 a step of Delta 1 is the rate / 2."""
    rule = {"name": "fadas", "lr": 1.0, "beta1": 0.0, "beta2": 0.0, "epsilon": 1.0, "options": {"delay": 3}}
    state = begin(torch.zeros(1), rule, size=2, version=10)
    steps, before = [], 0.0
    for sequence, tau in enumerate([3, 4]):
        state, _ = step(state, update([1.0], 2 * sequence, state.version), now=0.0)
        now = fold(state, [1.0], 2 * sequence + 1, tau).weights.item()
        steps.append(now - before)
        before = now
    assert steps == pytest.approx([1 / 2, 1 / 8])


@given(
    vectors,
    st.lists(vectors, min_size=1, max_size=12),
    st.integers(1, 5),
    st.floats(0, 1),
    st.floats(0.01, 0.99),
    st.floats(0.01, 1),
)
def test_delayed_nesterov_is_the_papers(
    weights: list[float], deltas: list[list[float]], period: int, share: float, beta: float, lr: float
) -> None:
    activation = share / period
    options = {"period": period, "activation": activation}
    rule = {"name": "delayed_nesterov", "lr": lr, "momentum": beta, "options": options}
    expected = oracles.delayed_nesterov(weights, deltas, lr, beta, period, activation)
    state = begin(torch.tensor(weights), rule)
    for i, delta in enumerate(deltas):
        assert fold(state, delta, i).weights.tolist() == pytest.approx(expected[i], rel=1e-4, abs=1e-4)


def test_of_period_1_it_is_sgd_with_nesterov_momentum() -> None:
    rule = {"name": "delayed_nesterov", "momentum": 0.5, "options": {"period": 1}}
    state = begin(torch.zeros(1), rule)
    assert fold(state, [1.0], 0).weights.item() == 1.0 + 0.5 * 1.0
    assert fold(state, [1.0], 1).weights.item() == 1.5 + 1.0 + 0.5 * 1.5


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_a_run_that_goes_on_from_moments_is_the_same_bytes_as_one_that_never_stopped(rule: dict[str, Any]) -> None:
    def delta(i: int) -> torch.Tensor:
        return torch.randn(BLOCK + 77, generator=torch.Generator().manual_seed(i))

    straight, stopped = (begin(torch.ones(BLOCK + 77), rule) for _ in range(2))
    for i in range(8):
        expected, found = fold(straight, delta(i), i, i % 4), fold(stopped, delta(i), i, i % 4)
        assert same_bytes(found.weights, expected.weights)
        moments = {name: tensor.clone() for name, tensor in found.moments.items()}
        stopped = begin(found.weights.clone(), rule, version=found.number, moments=moments)


@pytest.mark.parametrize(("name", "vectors_held"), [("fadas", 3), ("delayed_nesterov", 2)])
def test_what_is_remembered_is_bounded(name: str, vectors_held: int) -> None:
    state = begin(torch.zeros(3), RULES[name])
    for i in range(9):
        fold(state, [1.0, 2.0, 3.0], i)
        assert len(tensors_in(state)) == 1 + vectors_held
    assert len(rule_of(server_optimizer=ServerOptimizerSettings.model_validate(RULES[name])).moments) == vectors_held


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_options_are_recorded(rule: dict[str, Any]) -> None:
    recorded = rule_of(server_optimizer=ServerOptimizerSettings.model_validate(rule)).record()["server_optimizer"]
    assert isinstance(recorded, dict)
    assert rule["options"].items() <= recorded["options"].items()


def test_more_momentum_than_there_is_cannot_be_spread() -> None:
    rule = {"name": "delayed_nesterov", "momentum": 0.9, "options": {"period": 4, "activation": 0.3}}
    with pytest.raises(ConfigError, match="more than 1 / period"):
        begin(torch.zeros(1), rule)


def test_delayed_nesterov_without_momentum_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="delayed_nesterov needs one"):
        Settings(server_optimizer=ServerOptimizerSettings(name="delayed_nesterov"))

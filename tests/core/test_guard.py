"""What must not become a version, and going on from the one before."""

import math

import pytest
import torch

from llmos_stream.config import AggregationSettings, ServerOptimizerSettings
from llmos_stream.core import NewVersion, Rule, State, step, take_back
from llmos_stream.core.guard import check_version
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import TensorKind, TensorSpec
from tests.core.builders import start, update

SPECS = (
    TensorSpec("whole", (2,), "float32"),
    TensorSpec("half", (2,), "float16"),
    TensorSpec("none", (0, 3), "float16"),
    TensorSpec("mask", (2,), "float32", TensorKind.BUFFER),
)
PARENT = torch.tensor([3.0, 4.0, 0.0, 65000.0, 0.0, -math.inf])


def _after(place: int, value: float) -> torch.Tensor:
    weights = PARENT.clone()
    weights[place] = value
    return weights


@pytest.mark.parametrize(("place", "value"), [(0, 1e38), (2, 65519.0), (3, -65504.0), (4, 7.0), (5, 0.0)])
def test_what_the_dtypes_hold_passes(place: int, value: float) -> None:
    check_version(PARENT, _after(place, value), SPECS, None)


@pytest.mark.parametrize(
    ("place", "value", "detail"),
    [
        (0, math.nan, "whole would go from 3 to nan, which float32 cannot hold"),
        (3, 65520.0, "half would go from 65000 to 65520, which float16 cannot hold"),
        (4, math.inf, "mask would go from 0 to inf"),
        (5, math.inf, "mask would go from -inf to inf"),
    ],
)
def test_what_a_dtype_cannot_hold_is_named(place: int, value: float, detail: str) -> None:
    with pytest.raises(Rejected, match=detail) as caught:
        check_version(PARENT, _after(place, value), SPECS, None)
    assert caught.value.reason is Reason.UNSAFE_VERSION


def test_a_jump_of_the_parameters_is_told_from_a_step() -> None:
    specs = (SPECS[0], SPECS[3])
    parent, near, far = torch.tensor([3.0, 4.0, 0.0, -math.inf]), torch.tensor([3.0, 4.4, 9.0, 1.0]), torch.zeros(4)
    check_version(parent, near, specs, 0.1)
    with pytest.raises(Rejected, match=r"move by 1 of their norm; aggregation\.max_step is 0\.1"):
        check_version(parent, far, specs, 0.1)
    check_version(torch.zeros(4), near, specs, 0.1)  # from nothing every step is a jump


def test_a_rule_says_so_only_where_there_is_a_limit() -> None:
    assert "max_step" not in Rule().record()["aggregation"]  # type: ignore[operator]
    limited = Rule(AggregationSettings(max_step=0.5)).record()
    assert limited["aggregation"]["max_step"] == 0.5  # type: ignore[index]
    assert Rule.of(limited).aggregation.max_step == 0.5


def test_a_rule_without_nesterov_is_recorded_as_before() -> None:
    """Releases that do not know it read such a rule, and refuse the others."""
    plain = Rule(server_optimizer=ServerOptimizerSettings(momentum=0.9)).record()
    assert "nesterov" not in plain["server_optimizer"]  # type: ignore[operator]
    ahead = Rule(server_optimizer=ServerOptimizerSettings(momentum=0.9, nesterov=True)).record()
    assert ahead["server_optimizer"]["nesterov"] is True  # type: ignore[index]
    assert Rule.of(ahead).server_optimizer.nesterov
    assert Rule.of(plain, {"server_optimizer": {"nesterov": True}}).server_optimizer.nesterov


@pytest.mark.parametrize(
    ("strategy", "optimizer"),
    [
        ("fedbuff", ServerOptimizerSettings(momentum=0.9)),
        ("fedbuff", ServerOptimizerSettings(name="adam")),
        ("fedasync", ServerOptimizerSettings()),
        ("median", ServerOptimizerSettings()),
    ],
)
def test_what_is_taken_back_leaves_no_trace(strategy: str, optimizer: ServerOptimizerSettings) -> None:
    def begin() -> State:
        aggregation = AggregationSettings(strategy=strategy, buffer_size=1, mixing=0.5)
        return start(torch.ones(3), aggregation=aggregation, server_optimizer=optimizer)

    state, plain = begin(), begin()
    state, (_, first) = step(state, update([1.0, 2.0, 3.0]), now=0.0)
    assert isinstance(first, NewVersion)
    parent, moments = first.weights.clone(), {name: tensor.clone() for name, tensor in first.moments.items()}
    state, _ = step(state, update([1e9] * 3, sequence=1, base=1), now=0.0)
    state = take_back(state, parent, moments)
    state, (_, second) = step(state, update([1.0, 1.0, 1.0], sequence=2, base=1), now=0.0)

    plain, _ = step(plain, update([1.0, 2.0, 3.0]), now=0.0)
    plain, (_, expected) = step(plain, update([1.0, 1.0, 1.0], sequence=2, base=1), now=0.0)
    assert isinstance(second, NewVersion)
    assert isinstance(expected, NewVersion)
    assert (second.number, second.parent) == (2, 1)
    assert torch.equal(second.weights, expected.weights)
    assert all(torch.equal(second.moments[name], tensor) for name, tensor in expected.moments.items())


def test_without_moments_the_optimizer_starts_anew() -> None:
    state = start(
        torch.ones(3),
        server_optimizer=ServerOptimizerSettings(momentum=0.9),
        aggregation=AggregationSettings(buffer_size=1),
    )
    state, _ = step(state, update([1.0, 2.0, 3.0]), now=0.0)
    state = take_back(state, torch.ones(3), {})
    assert state.version == 0
    assert state.pipeline.state_tensors()["momentum"].tolist() == [0.0, 0.0, 0.0]

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from llmos_stream.config import ServerOptimizerSettings
from llmos_stream.core.flat import BLOCK
from llmos_stream.errors import ConfigError, StateError
from tests.core import oracles
from tests.core.builders import make_optimizer, same_bytes

NAMES = ("sgd", "adam", "yogi", "adagrad")
vectors = st.lists(st.floats(-1, 1, width=32), min_size=3, max_size=3)


def rules(name: str) -> st.SearchStrategy[ServerOptimizerSettings]:
    return st.builds(
        ServerOptimizerSettings,
        name=st.just(name),
        lr=st.floats(1e-3, 1),
        momentum=st.floats(0, 0.95) if name == "sgd" else st.just(0.0),
        nesterov=st.booleans() if name == "sgd" else st.just(False),
        beta1=st.floats(0, 0.95),
        beta2=st.floats(0, 0.999),
        epsilon=st.floats(1e-2, 1),
    )


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data(), weights=vectors, deltas=st.lists(vectors, min_size=1, max_size=6))
def test_agrees_with_the_paper_over_several_versions(
    name: str, data: st.DataObject, weights: list[float], deltas: list[list[float]]
) -> None:
    rule = data.draw(rules(name))
    oracle = oracles.Optimizer(name, rule.lr, rule.momentum, rule.beta1, rule.beta2, rule.epsilon, rule.nesterov)
    optimizer = make_optimizer(rule, 3)
    x, expected = torch.tensor(weights), weights
    for delta in deltas:
        expected = oracle.apply(expected, delta)
        assume(not oracle.close)
        x = optimizer.apply(x, torch.tensor(delta))
        assert x.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(
    ("name", "second_moment"),
    [("adagrad", 0.25 + 4.0), ("yogi", 0.25 + 0.5 * 4.0), ("adam", 0.5 * 0.25 + 0.5 * 4.0)],
)
def test_one_step_worked_by_hand(name: str, second_moment: float) -> None:
    rule = ServerOptimizerSettings.model_validate(
        {"name": name, "lr": 0.1, "beta1": 0.75, "beta2": 0.5, "epsilon": 0.5}
    )
    optimizer = make_optimizer(rule, 1)
    moved = optimizer.apply(torch.tensor([1.0]), torch.tensor([2.0]))
    assert optimizer.state_tensors()["first_moment"].tolist() == [0.5]
    assert optimizer.state_tensors()["second_moment"].tolist() == [second_moment]
    assert moved.item() == pytest.approx(1.0 + 0.1 * 0.5 / (second_moment**0.5 + 0.5))


def test_yogi_keeps_a_second_moment_that_equals_the_square() -> None:
    optimizer = make_optimizer(ServerOptimizerSettings(name="yogi", beta2=0.5, epsilon=0.5), 1)
    optimizer.apply(torch.zeros(1), torch.tensor([0.5]))
    assert optimizer.state_tensors()["second_moment"].tolist() == [0.25]


def test_momentum_adds_up() -> None:
    optimizer = make_optimizer(ServerOptimizerSettings(lr=0.5, momentum=0.5), 1)
    x = optimizer.apply(torch.zeros(1), torch.ones(1))
    assert x.item() == 0.5
    assert optimizer.apply(x, torch.ones(1)).item() == 0.5 + 0.5 * 1.5


@pytest.mark.parametrize("nesterov", [False, True])
@given(
    weights=vectors,
    deltas=st.lists(vectors, min_size=1, max_size=8),
    lr=st.floats(1e-3, 2),
    momentum=st.floats(0.01, 0.99),
)
def test_agrees_with_torch(
    nesterov: bool, weights: list[float], deltas: list[list[float]], lr: float, momentum: float
) -> None:
    parameter = torch.tensor(weights, requires_grad=True)
    torchs = torch.optim.SGD([parameter], lr=lr, momentum=momentum, nesterov=nesterov)
    ours = make_optimizer(ServerOptimizerSettings(lr=lr, momentum=momentum, nesterov=nesterov), 3)
    x = torch.tensor(weights)
    for delta in map(torch.tensor, deltas):
        parameter.grad = -delta
        torchs.step()
        x = ours.apply(x, delta)
        torch.testing.assert_close(x, parameter.detach(), rtol=1e-5, atol=1e-5)


def test_nesterov_looks_ahead() -> None:
    optimizer = make_optimizer(ServerOptimizerSettings(lr=0.5, momentum=0.5, nesterov=True), 1)
    x = optimizer.apply(torch.zeros(1), torch.ones(1))
    assert x.item() == 0.5 * (1 + 0.5)
    assert optimizer.apply(x, torch.ones(1)).item() == 0.75 + 0.5 * (1 + 0.5 * 1.5)
    assert optimizer.state_tensors()["momentum"].tolist() == [1.5]


@pytest.mark.parametrize("name", NAMES)
def test_the_pseudo_gradient_is_added_and_there_is_no_bias_correction(name: str) -> None:
    optimizer = make_optimizer(ServerOptimizerSettings.model_validate({"name": name, "lr": 0.1, "epsilon": 1.0}), 1)
    step = optimizer.apply(torch.zeros(1), torch.tensor([1e-3])).item()
    assert step == pytest.approx(1e-4 if name == "sgd" else 0.1 * 0.1 * 1e-3 / 2, rel=1e-2)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_several_blocks_and_tails_give_what_one_pass_gives(name: str, momentum: float) -> None:
    numel = BLOCK + 1001
    rule = ServerOptimizerSettings.model_validate(
        {"name": name, "lr": 0.3, "momentum": momentum if name == "sgd" else 0.0}
    )
    generator = torch.Generator().manual_seed(7)
    weights, delta = torch.randn(numel, generator=generator), torch.randn(numel, generator=generator)
    whole = make_optimizer(rule, numel).apply(weights, delta.clone())
    for start, stop in ((0, 1000), (BLOCK - 500, BLOCK + 500), (numel - 7, numel)):
        part = make_optimizer(rule, stop - start).apply(weights[start:stop], delta[start:stop].clone())
        assert same_bytes(whole[start:stop], part)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_only_read_and_the_delta_becomes_the_new_ones(name: str) -> None:
    weights, delta = torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.5])
    moved = make_optimizer(ServerOptimizerSettings.model_validate({"name": name}), 2).apply(weights, delta)
    assert weights.tolist() == [1.0, 2.0]
    assert moved.data_ptr() == delta.data_ptr()


@pytest.mark.parametrize("name", [*NAMES, "nesterov"])
def test_goes_on_from_its_moments_as_if_never_stopped(name: str) -> None:
    sgd: dict[str, object] = {"momentum": 0.9, "nesterov": name == "nesterov"}
    rule = ServerOptimizerSettings.model_validate(sgd if name in ("sgd", "nesterov") else {"name": name})
    first = make_optimizer(rule, 2)
    x = first.apply(torch.zeros(2), torch.tensor([1.0, -2.0]))
    second = make_optimizer(rule, 2)
    second.load(first.state_tensors())
    after = [each.apply(x, torch.tensor([0.5, 0.5])) for each in (first, second)]
    assert same_bytes(*after)


def test_plain_sgd_keeps_nothing() -> None:
    assert make_optimizer(ServerOptimizerSettings(), 2).state_tensors() == {}


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"momentum": torch.zeros(2)},
        {"first_moment": torch.zeros(2), "second_moment": torch.zeros(3)},
        {"first_moment": torch.zeros(2), "second_moment": torch.zeros(2, dtype=torch.float64)},
    ],
)
def test_moments_of_another_rule_or_model_are_refused_and_change_nothing(tensors: dict[str, torch.Tensor]) -> None:
    optimizer = make_optimizer(ServerOptimizerSettings(name="adam", epsilon=0.5), 2)
    with pytest.raises(StateError, match="server optimiser"):
        optimizer.load(tensors)
    assert optimizer.state_tensors()["second_moment"].tolist() == [0.25, 0.25]


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("adam", "epsilon", 1e-30),
        ("adam", "epsilon", 1e30),
        ("adam", "epsilon", 1e200),
        ("sgd", "lr", 1e39),
        ("sgd", "lr", 1e-50),
    ],
)
def test_numbers_that_float32_cannot_hold_are_bad_settings(name: str, setting: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"server_optimizer\.{setting}"):
        make_optimizer(ServerOptimizerSettings.model_validate({"name": name, setting: value}), 2)

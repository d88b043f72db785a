"""What `FederatedLearning` does beside its updates: its model trained alone, and what is shared of it."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_stream import FederatedLearning
from llmos_stream.errors import ConfigError
from llmos_stream.training.local import evaluate
from tests.federated.aids import told_of_trained

_BATCHES = [
    (torch.tensor([[0.0, 3.0], [1.0, 5.0], [2.0, 7.0], [3.0, 9.0]]), torch.tensor([0, 0, 1, 1])),
    (torch.tensor([[1.0, 2.0], [1.0, 1.0], [2.0, 0.0], [4.0, 1.0]]), torch.tensor([0, 1, 1, 0])),
]
_HELD_BACK = [(torch.tensor([[0.5, 3.0], [2.5, 7.5], [3.0, 1.0]]), torch.tensor([0, 1, 1]))]


def _model() -> nn.Module:
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))


def _optimizer(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.2, momentum=0.9)


def _learning(model: nn.Module, optimizer: torch.optim.Optimizer | None = None, **client: Any) -> FederatedLearning:
    settings = {"client": {"id": "north", **client}, "codec": {"name": "float32"}}
    optimizer = optimizer or _optimizer(model)
    return FederatedLearning(model, _BATCHES, optimizer, validation=_HELD_BACK, settings=settings)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _trained(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    for inputs, targets in _BATCHES:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def test_a_model_of_ones_own_is_trained_beside_and_the_given_one_is_as_without() -> None:
    alone, plain, model = _model(), _model(), _model()
    own, optimizer, plain_optimizer = _optimizer(alone), _optimizer(model), _optimizer(plain)
    expected = []
    with (
        _learning(model, optimizer, train_alone=True) as fl,
        _learning(plain, plain_optimizer) as other,
    ):
        for epoch, lr in enumerate((0.2, 0.2, 0.05)):
            for one in (own, optimizer, plain_optimizer):
                one.param_groups[0]["lr"] = lr  # as a scheduler would
            assert fl.train(epoch)["version"] == other.train(epoch)["version"] == epoch
            for name, tensor in _copied(model).items():
                torch.testing.assert_close(tensor, plain.state_dict()[name], rtol=0, atol=0)
            if epoch:
                expected.append(evaluate(deepcopy(alone), _HELD_BACK))
            _trained(alone, own)
        told = told_of_trained(fl)
    assert [(data["trained_by"], data["since"], data["version"]) for data in told] == [("north", 0, 1), ("north", 0, 2)]
    for data, metrics in zip(told, expected, strict=True):
        assert data["metrics"]["loss"] == pytest.approx(metrics["loss"], rel=1e-5)


def test_a_loop_of_ones_own_trains_no_model_alone() -> None:
    with _learning(_model(), train_alone=True) as fl:
        for _ in range(2):
            with fl.update() as update:
                update.num_examples = 4
        assert told_of_trained(fl) == []


@pytest.mark.parametrize("alone", [False, True])
def test_what_is_trained_here_is_shared_and_measured(alone: bool) -> None:
    model = _model()
    with _learning(model, share_local=True, share_local_every=1, train_alone=alone) as fl:
        trained = []
        for epoch in range(3):
            fl.train(epoch)
            trained.append(deepcopy(model))
        shared = fl._membership._federation.topics.locals
        ends = fl._membership.run(_ends(fl, shared))
        told = told_of_trained(fl)
    assert ends > 0
    assert {data["trained_by"] for data in told} == {"north"}
    if alone:  # it is measured where it is trained
        assert [data["since"] for data in told] == [0, 0]
        return
    assert [(data["since"], data["version"]) for data in told] == [(0, 0), (1, 1)]
    for data, before in zip(told, trained, strict=False):
        assert data["metrics"]["loss"] == pytest.approx(evaluate(before, _HELD_BACK)["loss"], rel=1e-5)


async def _ends(fl: FederatedLearning, topic: str) -> int:
    async with fl._membership._federation.broker.reader([topic], start="earliest") as reader:
        return sum((await reader.end_offsets()).values())


def test_where_something_is_missing_it_says_what() -> None:
    settings = {"client": {"train_alone": True}}
    model = _model()
    with pytest.raises(ConfigError, match=r"client\.train_alone: train needs the data_loader, the optimizer and valid"):
        FederatedLearning(model, _BATCHES, _optimizer(model), settings=settings)
    with pytest.raises(ConfigError, match=r"client\.train_alone: .*client\.evaluate_every must not be 0"):
        _learning(model, train_alone=True, evaluate_every=0)


class _Locked(torch.optim.SGD):
    def __deepcopy__(self, memo: object) -> "_Locked":
        raise TypeError("it holds a lock")


def test_an_optimizer_that_cannot_be_copied_is_named() -> None:
    model = _model()
    with pytest.raises(ConfigError, match=r"client\.train_alone: .* _Locked cannot be copied: it holds a lock"):
        _learning(model, _Locked(model.parameters(), lr=0.1), train_alone=True)


def test_one_that_asks_for_a_closure_is_copied_too() -> None:
    model = _model()
    with _learning(model, torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=2), train_alone=True) as fl:
        fl.train(0)
        fl.train(1)
        assert [data["since"] for data in told_of_trained(fl)] == [0]

"""Hooks on the training of a client, and what is built on them, against formulas that are written out here."""

import copy
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from llmos_stream import FederatedLearning
from llmos_stream.config import load
from llmos_stream.training import LocalTrainer
from llmos_stream.training.hooks import ClippedGradients, Hook, Proximal, hooks_of
from llmos_stream.training.shared_model import LocalModel

X = torch.randn(4, 8, 3, generator=torch.Generator().manual_seed(0))
BATCHES = [(x, x.sum(dim=1, keepdim=True)) for x in X]


def _model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))


def _trained(
    hooks: list[Hook], share: str = "all", model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, float]]:
    model = model or _model()
    local = LocalModel(LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1), mse_loss, hooks), share)
    trained = local.train(local.weights(), 7, [BATCHES])
    return model, dict(trained.metrics)


def _by_hand(mu: float, held: tuple[str, ...]) -> tuple[nn.Module, float]:
    """FedProx by its formula: mu/2 ||w - w_base||^2 is added to each batch's loss."""
    model = _model()
    base = copy.deepcopy(model)
    optimizer, plain = torch.optim.SGD(model.parameters(), lr=0.1), 0.0
    for x, y in BATCHES:
        optimizer.zero_grad()
        loss = mse_loss(model(x), y)
        plain += float(loss.detach()) / len(BATCHES)
        for (name, one), other in zip(model.named_parameters(), base.parameters(), strict=True):
            if name.startswith(held):
                loss = loss + mu / 2 * ((one - other.detach()) ** 2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return model, plain


class _Words(nn.Module):
    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.words, self.linear = nn.EmbeddingBag(9, 3, sparse=sparse), nn.Linear(3, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        found: Tensor = self.linear(self.words(inputs.abs().mul(3).long().clamp(max=8)))
        return found


@pytest.mark.parametrize("max_norm", [0.01, 1e6])
def test_gradients_are_clipped_that_are_sparse(max_norm: float) -> None:
    sparse, dense = (_trained([ClippedGradients(max_norm)], model=_Words(sparse=kind))[0] for kind in (True, False))
    for one, other in zip(sparse.parameters(), dense.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("share", "held"), [("all", ("0", "1")), ("1.*", ("1",))])
def test_fedprox_is_its_formula_over_what_is_shared(share: str, held: tuple[str, ...]) -> None:
    expected, plain_loss = _by_hand(0.7, held)
    model, metrics = _trained([Proximal(0.7, share)], share)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)
    assert metrics["loss"] == pytest.approx(plain_loss)  # the penalty is no part of what is reported


def test_fedprox_leaves_frozen_parameters_out() -> None:
    model = _model()
    model[0].requires_grad_(False)
    hook = Proximal(0.7)
    hook.before_training(model, 0)
    assert [id(parameter) for parameter, _ in hook._pairs] == [id(p) for p in model[1].parameters()]


def test_a_large_mu_keeps_the_client_near_the_version() -> None:
    far, near = (_trained([Proximal(mu)] if mu else [])[0] for mu in (0.0, 5.0))
    moved = [
        sum(
            float((p - q).detach().square().sum())
            for p, q in zip(model.parameters(), _model().parameters(), strict=True)
        )
        for model in (far, near)
    ]
    assert moved[1] < moved[0] / 4


def test_gradients_are_clipped_to_the_norm() -> None:
    norms = []

    class Watch(Hook):
        def before_step(self, model: nn.Module) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()))

    _trained([Watch(), ClippedGradients(0.25), Watch()])
    before, after = norms[0::2], norms[1::2]
    assert max(before) > 0.25
    assert after == pytest.approx([min(norm, 0.25) for norm in before], rel=1e-4)


def test_hooks_of_ones_own_are_called_in_their_order() -> None:
    said: list[object] = []

    class Mine(Hook):
        def before_training(self, model: nn.Module, version: int) -> None:
            said.append(("before", version))

        def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
            said.append("loss")
            return 2 * loss

        def before_step(self, model: nn.Module) -> None:
            said.append("step")

        def after_training(self, delta: Mapping[str, Tensor]) -> None:
            said.append(sorted(delta))
            for change in delta.values():
                change.zero_()

    model = _model()
    start = copy.deepcopy(model.state_dict())
    settings = load({"codec": {"name": "float32"}})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, BATCHES[:2], optimizer, loss=mse_loss, hooks=[Mine()], settings=settings) as fl:
        fl.train(0)
        assert said == [("before", 0), "loss", "step", "loss", "step", ["0.bias", "0.weight", "1.bias", "1.weight"]]
        for name, tensor in fl.global_state().items():
            assert torch.equal(tensor, start[name]), name  # the delta was taken away


def test_buffers_are_no_part_of_the_delta() -> None:
    names: list[str] = []

    class Mine(Hook):
        def after_training(self, delta: Mapping[str, Tensor]) -> None:
            names.extend(delta)

    model = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1))
    _trained([Mine()], model=model)
    assert names == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_settings_ask_for_them() -> None:
    assert hooks_of(load().client, "all") == []
    found = hooks_of(load({"client": {"proximal_mu": 0.1, "max_grad_norm": 1}}).client, "all")
    assert [type(hook) for hook in found] == [Proximal, ClippedGradients]


def test_the_settings_hold_for_train() -> None:
    expected, _ = _by_hand(0.7, ("0", "1"))
    model = _model()
    settings = {"codec": {"name": "float32"}, "client": {"proximal_mu": 0.7}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with FederatedLearning(model, BATCHES, optimizer, loss=mse_loss, settings=settings) as fl:
        fl.train(0)
    for one, other in zip(model.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other)

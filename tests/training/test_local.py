"""One epoch and one evaluation, for every shape a batch may have."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer
from llmos_stream.training.batches import Batch
from llmos_stream.training.local import evaluate
from tests.gpu import DEVICES

POINTS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
LABELS = torch.tensor([0, 1, 1])


class Sum(nn.Module):
    """Takes its inputs by position or by name, and adds them up before a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, left: Tensor, right: Tensor | None = None, scale: float = 1.0) -> Tensor:
        result: Tensor = self.linear(scale * (left if right is None else left + right))
        return result


def _identity() -> nn.Linear:
    """A model that returns its inputs as logits."""
    model = nn.Linear(2, 2)
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
        model.bias.zero_()
    return model


def _trainer(model: nn.Module, lr: float = 0.1) -> LocalTrainer:
    return LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=lr))


@pytest.mark.parametrize("device", DEVICES)
def test_training_does_the_steps_that_plain_torch_does(device: str) -> None:
    model, plain = _identity().to(device), _identity().to(device)
    batches = [(POINTS[:2], LABELS[:2]), (POINTS[2:], LABELS[2:])]
    metrics = _trainer(model).run_epoch(batches)
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.1)
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        loss = cross_entropy(plain(inputs.to(device)), targets.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.item())
    assert torch.equal(model.weight, plain.weight)
    assert metrics.loss == pytest.approx((2 * losses[0] + losses[1]) / 3)
    assert metrics.accuracy == pytest.approx(2 / 3)
    assert (metrics.num_examples, metrics.stopped) == (3, False)
    assert metrics.seconds > 0


def test_gradients_from_before_do_not_count_and_none_are_held_afterwards() -> None:
    model, plain = _identity(), _identity()
    model.weight.grad = torch.full((2, 2), 100.0)
    _trainer(model).run_epoch([(POINTS, LABELS)])
    _trainer(plain).run_epoch([(POINTS, LABELS)])
    assert torch.equal(model.weight, plain.weight)
    assert model.weight.grad is None


@pytest.mark.parametrize(
    "inputs",
    [
        POINTS,
        (POINTS - 1, torch.ones(3, 2)),
        [POINTS - 1, torch.ones(3, 2)],
        {"left": POINTS - 1, "right": torch.ones(3, 2)},
        {"left": POINTS / 2, "scale": 2.0},
    ],
    ids=["tensor", "tuple", "list", "mapping", "not-only-tensors"],
)
def test_inputs_reach_the_model_as_one_as_many_or_by_name(inputs: Any) -> None:
    model = Sum()
    expected = cross_entropy(model(POINTS), LABELS).item()
    assert evaluate(model, [(inputs, LABELS)])["loss"] == pytest.approx(expected)
    assert _trainer(model).run_epoch([(inputs, LABELS)]).loss == pytest.approx(expected)


def test_batches_come_from_a_generator_or_a_data_loader() -> None:
    def generate() -> Iterator[Batch]:
        yield POINTS[:2], LABELS[:2]
        yield POINTS[2:], LABELS[2:]

    loader = DataLoader(TensorDataset(POINTS, LABELS), batch_size=2)
    from_generator, from_loader = _identity(), _identity()
    assert _trainer(from_generator).run_epoch(generate()).num_examples == 3
    assert _trainer(from_loader).run_epoch(loader).num_examples == 3
    assert torch.equal(from_generator.weight, from_loader.weight)


def test_accuracy_of_predictions_at_each_position_leaves_padding_out() -> None:
    logits = torch.tensor([[[5.0, 0.0, 5.0], [0.0, 5.0, 0.0]]])  # (N=1, C=2, positions=3), classes 0 1 0
    targets = torch.tensor([[0, 0, -100]])
    metrics = evaluate(nn.Identity(), [(logits, targets)])
    assert metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["num_examples"] == 1


@pytest.mark.parametrize(
    ("inputs", "targets"),
    [
        (torch.zeros(3, 2), torch.zeros(3, 2)),
        (torch.zeros(3, 2), torch.zeros(3)),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.long)),
        (torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool)),
        (torch.zeros(3, 2, 4), torch.zeros(3, 5, dtype=torch.long)),
    ],
    ids=["regression", "float-targets", "one-output", "booleans", "other-shape"],
)
def test_what_is_no_classification_has_no_accuracy(inputs: Tensor, targets: Tensor) -> None:
    def loss(outputs: Tensor, _targets: Tensor) -> Tensor:
        return outputs.square().mean()

    assert evaluate(nn.Identity(), [(inputs, targets)], loss) == {"loss": 0.0, "num_examples": 3.0}


def test_a_regression_trains_without_an_accuracy() -> None:
    model = nn.Linear(2, 1)
    trainer = LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.05), mse_loss)
    losses = [trainer.run_epoch([(POINTS, POINTS[:, :1])]) for _ in range(50)]
    assert losses[-1].loss < losses[0].loss / 2
    assert losses[-1].accuracy is None


def test_a_bfloat16_model_trains() -> None:
    model = _identity().bfloat16()
    metrics = _trainer(model).run_epoch([(POINTS.bfloat16(), LABELS)])
    assert math.isfinite(metrics.loss)
    assert model.weight.dtype is torch.bfloat16
    assert not torch.equal(model.weight.float(), torch.eye(2))


@pytest.mark.parametrize("device", DEVICES)
def test_evaluation_changes_nothing(device: str) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Dropout(0.5)).to(device)
    model[1].eval()  # a part that its owner keeps frozen
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first = evaluate(model, [(POINTS, LABELS)])
    assert first == evaluate(model, [(POINTS, LABELS)])  # so dropout is off
    assert [module.training for module in model.modules()] == [True, True, False, True]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_training_runs_in_training_mode_and_leaves_the_mode_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval()
    _trainer(model).run_epoch([(POINTS, LABELS)])
    assert model.state_dict()["1.num_batches_tracked"].item() == 1
    assert not any(module.training for module in model.modules())


def test_modes_are_restored_when_training_fails() -> None:
    model = nn.Linear(2, 2).eval()
    with pytest.raises(TaskError):
        _trainer(model).run_epoch([])
    assert not model.training


def test_should_stop_ends_the_epoch_after_the_current_batch() -> None:
    answers = iter([False, True])
    metrics = _trainer(_identity()).run_epoch([(POINTS, LABELS)] * 5, should_stop=lambda: next(answers))
    assert metrics.stopped
    assert metrics.num_examples == 6


@pytest.mark.parametrize("run", [evaluate, lambda model, batches: _trainer(model).run_epoch(batches)])
@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is no batch"),
        (iter(()), "there is no batch"),
        ([(POINTS, LABELS), POINTS], r"batch 2 is a tensor of shape \(3, 2\), not a pair"),
        ([(POINTS, LABELS, LABELS)], r"batch 1 is a tuple of 3, not a pair .* go as \(\(first, second\), targets\)"),
        ([(POINTS[:0], LABELS[:0])] * 2, "there is no example in 2 batches"),
        ([(POINTS, torch.tensor(0))], r"no first dimension .* targets are a tensor of shape \(\)"),
    ],
)
def test_batches_of_the_wrong_form_are_named(run: Any, batches: Any, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        run(_identity(), batches)


def test_a_loss_that_is_not_finite_stops_training_before_its_step() -> None:
    model = _identity()
    batches = [(POINTS, LABELS), (POINTS, LABELS), (POINTS * math.inf, LABELS)]
    good = _identity()
    _trainer(good).run_epoch(batches[:2])
    with pytest.raises(TaskError, match=r"the loss became nan in batch 3; lower client\.lr"):
        _trainer(model).run_epoch(batches)
    assert torch.equal(model.weight, good.weight)


def test_a_diverged_model_is_evaluated_as_it_is() -> None:
    assert math.isnan(evaluate(_identity(), [(POINTS * math.inf, LABELS)])["loss"])


def test_a_loss_for_each_example_is_refused() -> None:
    with pytest.raises(TaskError, match=r"one number.*shape \(3,\)"):
        evaluate(_identity(), [(POINTS, LABELS)], nn.CrossEntropyLoss(reduction="none"))


def test_a_model_without_parameters_runs_on_the_cpu() -> None:
    assert evaluate(nn.Identity(), [(POINTS, LABELS)])["accuracy"] == pytest.approx(2 / 3)

"""Measuring on a site's own data: which versions, with which weights, and that training does not notice."""

from collections.abc import Iterable

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream.errors import ConfigError
from llmos_stream.training import LocalTrainer
from llmos_stream.training.alone import AloneModel
from llmos_stream.training.batches import Batch
from llmos_stream.training.local import evaluate
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.site_evaluator import SiteEvaluator, ValidationData


def _data(count: int, seed: int = 1) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(torch.randn(count, 8, generator=generator), torch.randint(0, 3, (count,), generator=generator))


def _local() -> LocalModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, 3))
    return LocalModel(LocalTrainer(model, SGD(model.parameters(), lr=0.1)), "all")


def _validation() -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(_data(50, 2), batch_size=16, shuffle=True)


@pytest.mark.parametrize(
    ("every", "seen", "measured"),
    [
        (1, [0, 1, 1, 2], [0, 1, 2]),
        (3, [0, 1, 4, 5, 6, 8, 9], [0, 4, 6, 9]),
        (10, [7, 9, 10], [7, 10]),
        (0, [0, 1], []),
    ],
)
def test_each_nth_version_or_the_first_after_it_is_measured_once(
    every: int, seen: list[int], measured: list[int]
) -> None:
    local = _local()
    evaluator = SiteEvaluator(local, local.trainer.loss, ValidationData(_validation), every)
    found = []
    for number in seen:
        if evaluator.is_due(number):
            evaluation = evaluator.measure(number, local.weights())
            assert evaluation is not None
            found.append(evaluation.version)
    assert found == measured
    assert [number for number in (seen[-1], seen[-1] + 1) if evaluator.is_new(number)] == (
        [] if not every else [seen[-1] + 1]
    )


def test_it_measures_the_version_and_not_what_the_model_held() -> None:
    local, other = _local(), _local()
    weights = torch.randn(local.layout.numel, generator=torch.Generator().manual_seed(3)).abs()
    other.load(weights)
    expected = evaluate(other.trainer.model, DataLoader(_data(50, 2), batch_size=16), other.trainer.loss)
    found = SiteEvaluator(local, local.trainer.loss, ValidationData(_validation), 1).measure(4, weights)
    assert found is not None
    assert (found.version, found.num_examples) == (4, 50)
    assert found.metrics["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_tasks_own_metrics_are_measured_too() -> None:
    local = _local()
    data = ValidationData(_validation, lambda: {"largest": lambda outputs, _: float(outputs.abs().max() >= 0)})
    found = SiteEvaluator(local, local.trainer.loss, data, 1).measure(0, local.weights())
    assert found is not None
    assert found.metrics["largest"] == 1.0
    assert set(found.metrics) == {"loss", "accuracy", "largest"}


def test_training_is_the_same_whether_it_measures_or_not() -> None:
    """Also where the loaders shuffle with torch's own generator, and where dropout draws from it."""
    deltas = []
    for measures in (False, True):
        local = _local()
        weights = local.weights()
        evaluator = SiteEvaluator(local, local.trainer.loss, ValidationData(_validation), 1)
        torch.manual_seed(5)
        if measures:
            evaluator.measure(0, weights)
        deltas.append(local.train(weights, 0, [DataLoader(_data(64), batch_size=8, shuffle=True)]))
    assert torch.equal(deltas[0].delta, deltas[1].delta)
    assert deltas[0].buffers is not None
    assert deltas[1].buffers is not None
    assert torch.equal(deltas[0].buffers, deltas[1].buffers)


def test_a_site_without_validation_data_is_asked_once() -> None:
    asked = []

    def nothing() -> Iterable[Batch] | None:
        asked.append(1)
        return None

    local = _local()
    evaluator = SiteEvaluator(local, local.trainer.loss, ValidationData(nothing), 1)
    assert evaluator.measure(0, local.weights()) is None
    assert not evaluator.is_due(1)
    assert not evaluator.is_new(1)
    assert len(asked) == 1


def test_what_both_models_would_train_is_refused() -> None:
    model = _local().trainer.model
    local = LocalModel(LocalTrainer(model, SGD(model.parameters(), lr=0.1)), "no-norm")
    with pytest.raises(ConfigError, match=r"client\.train_alone.*task\.share"):
        AloneModel(local, "no-norm")
    AloneModel(_local(), "all")


def test_it_goes_on_from_where_it_is_and_not_from_a_version() -> None:
    alone, batches = AloneModel(_local(), "all"), DataLoader(_data(64), batch_size=8)
    local, expected = _local(), _local()
    alone.begin(2, local.weights())
    alone.begin(3, torch.zeros(local.layout.numel))  # it has begun
    weights = expected.weights()
    for seed in (1, 2):
        torch.manual_seed(seed)
        alone.train([batches])
        torch.manual_seed(seed)
        expected.train(weights, 0, [batches])
        weights = expected.weights()
    assert alone.since == 2
    assert alone.weights is not None
    assert torch.equal(alone.weights, weights)
    alone.train([batches], lambda: True)  # cut short
    assert torch.equal(alone.weights, weights)

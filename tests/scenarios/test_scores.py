"""The scores against scikit-learn's, ties included."""

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from llmos_stream.scenarios.scores import AveragePrecision, CalibrationError, FalseAlarms, MeanScore, RocAuc


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [4, 1000])
def test_they_are_what_scikit_learn_says(seed: int, levels: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.random(300) < 0.1
    scores = generator.integers(0, levels, 300) / levels + 0.3 * labels
    found = {}
    for metric in (RocAuc(), AveragePrecision()):
        metric.reset()
        for part in np.array_split(np.arange(300), 7):
            metric.update(torch.from_numpy(scores[part]), torch.from_numpy(labels[part].astype(np.int64)))
        found[type(metric).__name__] = metric.compute()
    assert found["RocAuc"] == pytest.approx(roc_auc_score(labels, scores))
    assert found["AveragePrecision"] == pytest.approx(average_precision_score(labels, scores))


def test_what_compares_classes_is_no_number_where_one_is_missing() -> None:
    for metric in (RocAuc(), AveragePrecision(), FalseAlarms(0.5, 1)):
        metric.update(torch.tensor([0.1, 0.2]), torch.tensor([0, 0]))
        assert np.isnan(metric.compute())


def test_calibration_is_zero_where_what_is_foretold_happens() -> None:
    said = torch.tensor([0.25] * 400 + [0.75] * 400)
    was = torch.tensor([1, 0, 0, 0] * 100 + [1, 1, 1, 0] * 100)
    right, wrong = CalibrationError(), CalibrationError()
    right.update(said, was)
    wrong.update(1 - said, was)
    assert right.compute() == pytest.approx(0.0)
    assert wrong.compute() == pytest.approx(0.5)


def test_logits_are_taken_for_the_second_class() -> None:
    metric = RocAuc()
    metric.update(torch.tensor([[2.0, -1.0], [0.0, 3.0]]), torch.tensor([0, 1]))
    assert metric.compute() == 1.0
    assert metric(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1])) == 0.0
    assert metric.compute() == 1.0, "a batch that is measured alone is not gathered"


def test_false_alarms_are_those_at_the_threshold_that_finds_enough() -> None:
    scores = torch.tensor([9.0, 8.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0])
    labels = torch.tensor([1, 0, 1, 0, 1, 0, 1, 0])
    for recall, alarms in [(0.25, 0), (0.5, 1), (0.51, 2), (0.75, 2), (1.0, 3)]:
        assert FalseAlarms(recall, 100)(scores, labels) == pytest.approx(100 * alarms / 4)
    assert MeanScore()(scores, labels) == pytest.approx((8 + 7 + 5 + 3) / 4)

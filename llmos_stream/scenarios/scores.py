"""Metrics of two classes, of which the second is what is looked for. They have the form that `Task.metrics` takes.

Outputs are logits (N, 2), or scores (N) that are higher for the second class. Where only one class is there, what
compares them is not a number.
"""

import math
from abc import ABC, abstractmethod
from copy import copy

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

_BINS = 10

Numbers = NDArray[np.float64]


class _Score(ABC):
    """Gathers all outputs, and computes at the end."""

    def __init__(self) -> None:
        self._scores: list[Numbers] = []
        self._labels: list[Numbers] = []

    def __call__(self, outputs: Tensor, targets: Tensor) -> float:
        """The score of this batch alone."""
        fresh = copy(self)
        fresh.reset()
        fresh.update(outputs, targets)
        return fresh.compute()

    def reset(self) -> None:
        """Forget what was gathered."""
        self._scores, self._labels = [], []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Take in a batch."""
        scores = outputs.softmax(dim=1)[:, 1] if outputs.ndim == 2 else outputs
        self._scores.append(scores.detach().double().cpu().numpy())
        self._labels.append(targets.detach().double().cpu().numpy())

    def compute(self) -> float:
        """The score over all batches."""
        return float(self.of(np.concatenate(self._scores), np.concatenate(self._labels)))

    @abstractmethod
    def of(self, scores: Numbers, labels: Numbers) -> float:
        """The score of these examples."""


class RocAuc(_Score):
    """How often an example of the second class has the higher score, of all pairs of both; a tie counts half."""

    def of(self, scores: Numbers, labels: Numbers) -> float:
        positives, negatives = labels.sum(), (1 - labels).sum()
        if not positives or not negatives:
            return float("nan")
        _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
        ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
        return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * negatives))


class AveragePrecision(_Score):
    """Precision at each threshold, weighted by how much recall it adds."""

    def of(self, scores: Numbers, labels: Numbers) -> float:
        if not labels.sum():
            return float("nan")
        found, taken = _found(scores, labels)
        recall = found / labels.sum()
        return float((np.diff(recall, prepend=0.0) * found / taken).sum())


class CalibrationError(_Score):
    """Mean distance between what is foretold and what happens, over ten bins of as many examples each."""

    def of(self, scores: Numbers, labels: Numbers) -> float:
        order = np.argsort(scores, kind="stable")
        bins = zip(np.array_split(scores[order], _BINS), np.array_split(labels[order], _BINS), strict=True)
        return float(sum(abs(said.sum() - was.sum()) for said, was in bins) / len(labels))


class FalseAlarms(_Score):
    """Alarms at examples of the first class, for each `readings` of these, where `recall` of the second are found.

    There is one threshold for all examples: the highest by which so many are found.
    """

    def __init__(self, recall: float, readings: int) -> None:
        super().__init__()
        self._recall, self._readings = recall, readings

    def of(self, scores: Numbers, labels: Numbers) -> float:
        positives, negatives = scores[labels == 1], scores[labels == 0]
        if not len(positives) or not len(negatives):
            return float("nan")
        needed = math.ceil(self._recall * len(positives))
        threshold = np.sort(positives)[len(positives) - needed]
        return float((negatives >= threshold).mean() * self._readings)


class MeanScore(_Score):
    """The mean score of the examples of the first class."""

    def of(self, scores: Numbers, labels: Numbers) -> float:
        return float(scores[labels == 0].mean()) if (labels == 0).any() else float("nan")


def _found(scores: Numbers, labels: Numbers) -> tuple[Numbers, Numbers]:
    """For each threshold from the highest: how many of the second class are at or above it, and how many in all."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    return np.cumsum(labels[order])[last_of_ties], (1.0 + np.arange(len(scores)))[last_of_ties]

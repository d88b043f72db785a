"""Measuring versions where the data are: on what a site holds back of its own, in the model that it trains."""

from collections.abc import Callable, Iterable, Mapping
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor

from llmos_stream.training.batches import Batch
from llmos_stream.training.local import evaluate
from llmos_stream.training.losses import Loss
from llmos_stream.training.metrics import Metric
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.training.shared_model import SharedModel


class ValidationData(NamedTuple):
    """What a site measures on and by, each given anew for each version. Without batches it holds none back."""

    batches: Callable[[], Iterable[Batch] | None]
    metrics: Callable[[], Mapping[str, Metric]] = dict


def is_due(number: int, last: int | None, every: int) -> bool:
    """Whether it is the turn of version `number`: each `every`-th is due, or the first after it. `last` had its own."""
    return last is None or number // every > last // every


class SiteEvaluator:
    """Measures each `every`-th version, or the first after it that the site gets. 0: none."""

    def __init__(self, shared: SharedModel, loss: Loss, data: ValidationData, every: int) -> None:
        self._shared = shared
        self._loss = loss
        self._data = data
        self._every = every
        self._last: int | None = None

    def is_due(self, number: int) -> bool:
        """Whether a version is to be measured. No version is twice."""
        return self._every > 0 and is_due(number, self._last, self._every)

    def is_new(self, number: int) -> bool:
        """Whether a version has not been measured, however often that is done."""
        return self._every > 0 and (self._last is None or number > self._last)

    def measure(self, number: int, weights: Tensor) -> Evaluation | None:
        """Load version `number`, whose weights are flat, into the model and measure it; None: there are no data.

        What is not shared stays the site's own. Nothing of it can be seen in the training that follows: torch's
        generator is as before.

        Raises:
            TaskError: The data or the model cannot be used.
        """
        begun, batches = perf_counter(), self._data.batches()
        if batches is None:
            self._every = 0
            return None
        self._shared.load(weights)
        with torch.random.fork_rng(devices=[]):
            metrics = evaluate(self._shared.model, batches, self._loss, self._data.metrics())
        self._last = number
        num_examples = int(metrics.pop("num_examples"))
        return Evaluation(number, metrics, num_examples, perf_counter() - begun)

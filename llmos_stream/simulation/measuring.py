"""What versions reach: on the task's test data, and at the clients."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos_stream.errors import TaskError
from llmos_stream.simulation.scene import Scene
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.simulation.sites import load_site
from llmos_stream.training import task_errors
from llmos_stream.training.batches import call, prepare
from llmos_stream.training.local import evaluate
from llmos_stream.training.losses import logits_of
from llmos_stream.training.model_evaluator import ModelEvaluator, check_test_data
from llmos_stream.training.states import load_state, state_with

_MOST_SITES = 64
_MOST_CLIENTS = 10_000


class Measuring(Protocol):
    """Measures the versions of one run; `weights` are flat."""

    def measure(self, version: int, weights: Tensor) -> Mapping[str, float]:
        """The metrics of a version."""
        ...

    def at_sites(self, weights: Tensor) -> dict[str, float]:
        """Mean, worst and variance of the metric over the clients; empty where that cannot be told."""
        ...


class OnTestData:
    """Measures on the task's central test data.

    Raises:
        ConfigError: The task has none.
        TaskError: It does not load.
    """

    def __init__(self, settings: RunSettings, scene: Scene) -> None:
        task = self._task = scene.task
        self._settings = settings
        self._data, self._layout = scene.data, scene.layout
        check_test_data(task, settings.task, settings.evaluator.batch_size)
        self._evaluator = ModelEvaluator(task, settings.task, settings.evaluator.batch_size)

    def measure(self, version: int, weights: Tensor) -> Mapping[str, float]:
        """The metrics of a version, of which that of `simulation.metric` is one.

        Raises:
            TaskError: It is not.
        """
        metrics = self._evaluator.evaluate(version, self._layout, weights).metrics
        if (name := self._settings.simulation.metric) not in metrics:
            raise TaskError(f"simulation.metric: the task measures {', '.join(sorted(metrics))}, not {name}")
        return metrics

    def at_sites(self, weights: Tensor) -> dict[str, float]:
        """See `Measuring`.

        Where a simulation has split the data, a client's accuracy is that on test examples in its own mix of classes.
        Else it is the metric on the site's own validation data.
        """
        with task_errors(self._settings.task.entry):
            model = self._task.model()
        load_state(model, state_with(model, self._layout, weights))
        values = self._by_mix(model) if self._data is not None else self._by_site(model)
        if values is None or not len(values):
            return {}
        worst = values.min() if self._settings.simulation.mode == "max" else values.max()
        return {"mean": float(values.mean()), "worst": float(worst), "variance": float(values.var())}

    def _by_mix(self, model: torch.nn.Module) -> NDArray[np.float64] | None:
        if self._data is None or self._settings.simulation.metric != "accuracy":
            return None
        right: dict[int, list[bool]] = {}
        device = next(model.parameters()).device
        model.eval()
        batches = check_test_data(self._task, self._settings.task, self._settings.evaluator.batch_size)
        with torch.no_grad():
            for number, batch in enumerate(batches):
                if (prepared := prepare(model, batch, device, number)) is None:
                    continue
                logits = logits_of(call(model, prepared.inputs), prepared.targets)
                if logits is None or prepared.targets.ndim != 1:
                    return None
                hits = logits.argmax(dim=1) == prepared.targets
                for label, hit in zip(prepared.targets.tolist(), hits.tolist(), strict=True):
                    right.setdefault(label, []).append(hit)
        clients = range(min(self._settings.population.clients, _MOST_CLIENTS))
        mixes = np.stack([self._data.mix(client) for client in clients])
        per_class = np.array([np.mean(right.get(label, [False])) for label in range(mixes.shape[1])])
        found: NDArray[np.float64] = mixes @ per_class
        return found

    def _by_site(self, model: torch.nn.Module) -> NDArray[np.float64] | None:
        own, found = self._settings, []
        sites = len(own.data.sites) or own.task.shards
        for number in range(min(sites, own.population.clients, _MOST_SITES)):
            task = load_site(own, number)
            with task_errors(own.task.entry):
                batches = task.validation_batches()
                if batches is not None:
                    found.append(evaluate(model, batches, task.loss, task.metrics()).get(own.simulation.metric))
        known = [value for value in found if value is not None]
        return np.array(known) if known else None

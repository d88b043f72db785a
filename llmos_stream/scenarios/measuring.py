"""How good models are at the sites, and which of the versions that were made is taken: by validation rows alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llmos_stream.scenarios.site import Place
from llmos_stream.scenarios.site_task import Examples, joined
from llmos_stream.training import Task
from llmos_stream.training.local import evaluate

Models = Sequence[nn.Module]
"""A model for each site, or one for all of them."""


class Measuring:
    """Measures models on what the sites hold back."""

    def __init__(self, task: Task, places: Sequence[Place]) -> None:
        self._task = task
        self._tests = [place.test for place in places]
        self._validations = [place.validation for place in places]
        self._test, self._validation = joined(self._tests), joined(self._validations)

    def validation_loss(self, models: Models) -> float:
        """The loss over the validation rows of all sites, each measured with its own model."""
        return self._measured(models, self._validations, self._validation)["loss"]

    def loss_at(self, model: nn.Module, site: int) -> float:
        """The loss over the validation rows of one site."""
        return self._measured([model], [], self._validations[site])["loss"]

    def at_home(self, models: Models) -> Mapping[str, float]:
        """The metrics over the test rows of all sites together, each site's measured with its own model."""
        return self._measured(models, self._tests, self._test)

    def everywhere(self, models: Models) -> Mapping[str, float]:
        """The metrics of one model over the test rows of all sites; the mean over the models."""
        found = [self._measured([model], [], self._test) for model in models]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}

    def _measured(self, models: Models, parts: Sequence[Examples], whole: Examples) -> dict[str, float]:
        if len(models) == 1:
            outputs = _outputs(models[0], whole.inputs)
        else:
            outputs = torch.cat([_outputs(model, part.inputs) for model, part in zip(models, parts, strict=True)])
        return evaluate(nn.Identity(), [(outputs, whole.targets)], self._task.loss, self._task.metrics())


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        found: Tensor = model(inputs)
    return found


@dataclass(frozen=True, slots=True)
class Point:
    """A version: when it was there, and what the metrics over the test rows were."""

    seconds: float
    metrics: Mapping[str, float]


class Course:
    """The versions of one run; `best` is the one whose loss over the validation rows is least."""

    def __init__(self, measuring: Measuring) -> None:
        self._measuring = measuring
        self._least = float("inf")
        self.points: list[Point] = []
        self.at_home: Mapping[str, float] = {}
        self.everywhere: Mapping[str, float] = {}

    def note(self, seconds: float, models: Models) -> None:
        """A version is there, as these models."""
        at_home = self._measuring.at_home(models)
        self.points.append(Point(seconds, at_home))
        loss = self._measuring.validation_loss(models)
        if loss < self._least:
            self._least, self.at_home = loss, at_home
            self.everywhere = self._measuring.everywhere(models) if len(models) > 1 else at_home

    def reaches(self, metric: str, target: float) -> float | None:
        """When a version first had this much of a metric; None: never."""
        return next((point.seconds for point in self.points if point.metrics[metric] >= target), None)

"""How good models are at the sites, and which of the versions that were made is taken: by validation rows alone."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from llmos_stream.scenarios.site_task import Examples, Split
from llmos_stream.simulation.scene import Scene
from llmos_stream.training import Task
from llmos_stream.training.local import evaluate
from llmos_stream.training.personal import personal_tensors
from llmos_stream.training.sharing import shared_tensors
from llmos_stream.training.states import load_

Rows = Literal["test", "validation"]
Models = Sequence[nn.Module]
"""A model for each site, or one for all of them."""
Answers = Sequence[Examples]
"""Of each site, what its model answers to its rows, and the targets of these."""
_AT_ONCE = 256


class HeldBack:
    """What the sites do not train on. Metrics are those over the test rows, unless other `rows` are asked for."""

    def __init__(self, task: Task, splits: Sequence[Split], rows: Rows) -> None:
        self._task = task
        self._validations = [split.validation for split in splits]
        self._shown = [split.test for split in splits] if rows == "test" else self._validations

    def validation_loss(self, models: Models) -> float:
        """The loss over the validation rows of all sites, each measured with its own model."""
        return self.scored(_answers(models, self._validations))["loss"]

    def loss_at(self, model: nn.Module, site: int) -> float:
        """The loss over the validation rows of one site."""
        return self.scored(_answers([model], [self._validations[site]]))["loss"]

    def answers(self, models: Models) -> Answers:
        """What the sites' models, each its own, answer to the rows of the sites."""
        return _answers(models, self._shown)

    def scored(self, answers: Answers) -> dict[str, float]:
        """The metrics over the rows of these sites together."""
        pairs = ((part.inputs, part.targets) for part in answers)
        return evaluate(nn.Identity(), pairs, self._task.loss, self._task.metrics())

    def everywhere(self, models: Models) -> dict[str, float]:
        """The metrics of one model over the rows of all sites; the mean over the models."""
        found = [self.scored(self.answers([model])) for model in models]
        return {name: sum(one[name] for one in found) / len(found) for name in found[0]}


def _answers(models: Models, parts: Sequence[Examples]) -> Answers:
    own = models if len(models) > 1 else [models[0]] * len(parts)
    return [Examples(_outputs(model, part.inputs), part.targets) for model, part in zip(own, parts, strict=True)]


def _outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    model.eval()
    with torch.no_grad():
        starts = range(0, len(inputs), _AT_ONCE)
        return torch.cat([model(inputs[start : start + _AT_ONCE]) for start in starts])


class Best:
    """Of the models that it is shown, those whose loss over the validation rows is least, and what they reach."""

    def __init__(self, held: HeldBack) -> None:
        self._held = held
        self._least = float("inf")
        self.at_home: Mapping[str, float] = {}
        self.everywhere: Mapping[str, float] = {}
        self.by_site: Sequence[Mapping[str, float]] = ()

    def show(self, models: Models) -> dict[str, float]:
        """Take the next models into account; what they reach at home."""
        answers = self._held.answers(models)
        at_home = self._held.scored(answers)
        loss = self._held.validation_loss(models)
        if loss < self._least:
            self._least, self.at_home = loss, at_home
            self.by_site = [self._held.scored([part]) for part in answers]
            self.everywhere = self._held.everywhere(models) if len(models) > 1 else at_home
        return at_home


class AtSites:
    """Measures the versions of a simulated federation (see `simulation.measuring`) at its sites.

    Where each site keeps a part of the model, its version is measured with that part.
    """

    def __init__(self, best: Best, scene: Scene, sites: int) -> None:
        self._best, self._scene = best, scene
        self._models = [scene.task.model() for _ in range(sites if scene.trainer.own(0) else 1)]
        share = scene.task.share
        self._shared = [shared_tensors(model, share) for model in self._models]
        self._own = [personal_tensors(model, share) for model in self._models] if len(self._models) > 1 else []

    def measure(self, version: int, weights: Tensor) -> Mapping[str, float]:
        for tensors in self._shared:
            load_(tensors, self._scene.layout.views(weights))
        for site, tensors in enumerate(self._own):
            load_(tensors, self._scene.trainer.own(site))
        return self._best.show(self._models)

    def at_sites(self, weights: Tensor) -> dict[str, float]:
        return {}

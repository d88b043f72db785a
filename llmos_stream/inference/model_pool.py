"""The versions that are loaded as models, and what an operator chose among them.

A `LoadedModel` is complete before anyone sees it, and nobody writes to it afterwards. One assignment replaces the whole
mapping of models. So a request sees all of a version or nothing, and keeps its model alive until its answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random
from typing import Any

from torch import Tensor, nn

from llmos_stream.codec import Layout
from llmos_stream.config import InferenceSettings
from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.inference.routing import Choice, Route, Why, choose, serving
from llmos_stream.log.versions import Version
from llmos_stream.registry import ArchivedVersion
from llmos_stream.training import Task, load_, shared_layout, shared_tensors

_MAX_SERVED = 32


class NotLoaded(LlmosError):
    """No version of that number is loaded, or there is none to go back to."""


@dataclass(frozen=True, slots=True, eq=False)
class LoadedModel:
    """A version as a model in eval mode that nobody writes to, or what else its `Make` makes of it."""

    version: int
    digest: str
    time_ms: int
    model: Any


Make = Callable[[Layout, Tensor], Any]
"""Makes a model of a version's flat weights, which may be overwritten afterwards. It is called off the event loop.

It raises a `ConfigError` where the version is of another model.
"""


def making(task: Task, share: str) -> Make:
    """Make for each version a whole model of its own, in eval mode.

    Args:
        task: Makes the models.
        share: Which of their tensors the federation shares (`task.share`).
    """

    def make(layout: Layout, weights: Tensor) -> nn.Module:
        model = task.model()
        shared = shared_tensors(model, share)
        if not shared_layout(model, share).has_tensors_of(layout):
            raise ConfigError("task.entry, task.share: the task's shared tensors are not the federation's")
        load_(shared, layout.views(weights))
        return model.eval().requires_grad_(False)

    return make


def load_model(make: Make, version: Version) -> LoadedModel:
    """Make the model of a version of the log. Call it off the event loop.

    Raises:
        ConfigError: The version is of another model.
    """
    head, model = version.head, make(version.layout, version.weights)
    return LoadedModel(head.number, head.weights_digest.hex(), head.time_ms, model)


def load_archived(make: Make, entry: ArchivedVersion, weights: Tensor) -> LoadedModel:
    """Do as `load_model` with a version from the registry."""
    model = make(entry.layout, weights)
    return LoadedModel(entry.version, entry.weights_digest.hex(), entry.time_ms, model)


class ModelPool:
    """The loaded models, and which of them serves. Only the event loop's thread uses it.

    Args:
        settings: How many models are kept, and the canary's share at the start.
        draw: Returns random numbers from [0, 1).
        changed: Called with the pool after every change.
    """

    def __init__(
        self,
        settings: InferenceSettings,
        draw: Callable[[], float] = random,
        changed: Callable[["ModelPool"], object] = lambda _: None,
    ) -> None:
        self._keep = settings.keep
        self._draw = draw
        self._changed = changed
        self._served: list[int] = []  # the versions that served, newest last: to go back to
        self.models: Mapping[int, LoadedModel] = {}
        self.promoted: int | None = None
        self.route = Route(canary=settings.canary)

    @property
    def serving(self) -> Choice | None:
        """The version that answers all but the canary's share, and why."""
        return serving(self.models, self.promoted, self.route)

    @property
    def newest(self) -> int | None:
        """The newest version that is loaded."""
        return max(self.models, default=None)

    def publish(self, model: LoadedModel, *, promoted: bool = False) -> None:
        """Add a version, perhaps as the promoted one, and drop the oldest that nobody needs."""
        self._change(models={**self.models, model.version: model}, promoted=model.version if promoted else None)

    def promote(self, version: int) -> None:
        """Serve the version that an operator promoted in `<f>.control`.

        Raises:
            NotLoaded: It is not in the pool.
        """
        self._change(promoted=self.get(version).version)

    def set_route(self, route: Route) -> None:
        """Serve as `route` says.

        Raises:
            NotLoaded: Its pinned version is not in the pool.
        """
        if route.pin is not None:
            self.get(route.pin)
        self._change(route=route)

    def roll_back(self) -> Choice:
        """Pin the version that served before the one that serves now, and send nothing to the newest.

        Raises:
            NotLoaded: There is none.
        """
        back = next((number for number in reversed(self._served[:-1]) if number in self.models), None)
        if back is None:
            raise NotLoaded("no version that served before is still held; pin one of GET /v1/models")
        self._served = self._served[: self._served.index(back)]
        self._change(route=Route(pin=back))
        return Choice(back, Why.PINNED)

    def get(self, version: int) -> LoadedModel:
        """Return the model of a version.

        Raises:
            NotLoaded: It is not in the pool.
        """
        if (model := self.models.get(version)) is None:
            there = ", ".join(map(str, sorted(self.models))) or "none yet"
            raise NotLoaded(f"version {version} is not held; held are: {there}")
        return model

    def pick(self, asked: int | None = None) -> tuple[LoadedModel, Why]:
        """Choose the model that answers one request.

        Raises:
            NotLoaded: The version that was asked for is not in the pool, or the pool is empty.
        """
        if asked is not None:
            return self.get(asked), Why.ASKED
        choice = choose(self.models, self.promoted, self.route, self._draw())
        if choice is None:
            raise NotLoaded("there is no version yet; ask again once /ready says yes")
        return self.models[choice.version], choice.why

    def _change(
        self,
        *,
        models: Mapping[int, LoadedModel] | None = None,
        promoted: int | None = None,
        route: Route | None = None,
    ) -> None:
        models = self.models if models is None else models
        self.promoted = self.promoted if promoted is None else promoted
        self.route = self.route if route is None else route
        stable = serving(models, self.promoted, self.route)
        if stable is not None and self._served[-1:] != [stable.version]:
            self._served = [*(number for number in self._served if number != stable.version), stable.version]
            self._served = self._served[-_MAX_SERVED:]
        wanted = {*sorted(models)[-self._keep :], self.promoted, self.route.pin, *self._served[-2:]}
        self.models = {number: models[number] for number in sorted(models) if number in wanted}
        self._changed(self)

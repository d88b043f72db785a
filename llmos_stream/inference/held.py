"""The versions that are held, ready to answer, and what an operator has said about them.

A `Held` is complete before anyone sees it and is never written to afterwards. All that are held lie in one mapping,
which is replaced by one assignment; so a request sees all of a version or nothing, and keeps alive the one it has.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import random

from torch import Tensor, nn

from llmos_stream.codec import Layout
from llmos_stream.config import InferenceSettings, Settings
from llmos_stream.errors import ConfigError
from llmos_stream.inference.errors import NotHeld
from llmos_stream.inference.routing import Choice, Route, Why, choose, serving
from llmos_stream.log import Version
from llmos_stream.registry import ArchivedVersion
from llmos_stream.training import Task, load_, shared_tensors

_REMEMBERED = 32


@dataclass(frozen=True, slots=True, eq=False)
class Held:
    """A version as a model in eval mode that nobody writes to."""

    version: int
    digest: str
    time_ms: int
    model: nn.Module


def build(task: Task, settings: Settings, version: Version) -> Held:
    """A model of its own with the version's weights, which may be overwritten afterwards. Works for a while.

    Raises ConfigError when the version is of another model.
    """
    head, model = version.head, _model(task, settings, version.layout, version.weights)
    return Held(head.number, head.weights_digest.hex(), head.time_ms, model)


def build_archived(task: Task, settings: Settings, entry: ArchivedVersion, weights: Tensor) -> Held:
    """As `build`, of what the registry holds."""
    model = _model(task, settings, entry.layout, weights)
    return Held(entry.version, entry.weights_digest.hex(), entry.time_ms, model)


def _model(task: Task, settings: Settings, layout: Layout, weights: Tensor) -> nn.Module:
    model = task.model()
    shared = shared_tensors(model, settings.task.share)
    if Layout.of(shared).digest != layout.digest:
        raise ConfigError("task.entry, task.share: the task's shared tensors are not the federation's")
    load_(shared, layout.unflatten(weights))
    return model.eval().requires_grad_(False)


class Shelf:
    """What is held, and what serves. For the event loop's thread alone.

    `changed` is called with it after every change; `draw` gives numbers from [0, 1).
    """

    def __init__(
        self,
        settings: InferenceSettings,
        draw: Callable[[], float] = random,
        changed: Callable[["Shelf"], object] = lambda _: None,
    ) -> None:
        self._keep = settings.keep
        self._draw = draw
        self._changed = changed
        self._served: list[int] = []  # what has served, newest last: to go back to
        self.held: Mapping[int, Held] = {}
        self.promoted: int | None = None
        self.route = Route(canary=settings.canary)

    @property
    def serving(self) -> Choice | None:
        """The version that answers all but the canary's share, and why."""
        return serving(self.held, self.promoted, self.route)

    @property
    def newest(self) -> int | None:
        return max(self.held, default=None)

    def publish(self, held: Held, *, promoted: bool = False) -> None:
        """Take in a version, perhaps as the promoted one; the oldest that nobody wants go."""
        self._change(held={**self.held, held.version: held}, promoted=held.version if promoted else None)

    def promote(self, version: int) -> None:
        """What an operator wants served by everyone, in `<f>.control`. Raises NotHeld."""
        self._change(promoted=self.named(version).version)

    def set_route(self, route: Route) -> None:
        """Raises NotHeld when the pin is not."""
        if route.pin is not None:
            self.named(route.pin)
        self._change(route=route)

    def roll_back(self) -> Choice:
        """Pin the version that served before the one that serves now, and send nothing to the newest.

        Raises NotHeld when there is none.
        """
        back = self._before()
        if back is None:
            raise NotHeld("no version that served before is still held; pin one of GET /v1/models")
        self._served = self._served[: self._served.index(back)]
        self._change(route=Route(pin=back))
        return Choice(back, Why.PINNED)

    def named(self, version: int) -> Held:
        """Raises NotHeld."""
        if (held := self.held.get(version)) is None:
            there = ", ".join(map(str, sorted(self.held))) or "none yet"
            raise NotHeld(f"version {version} is not held; held are: {there}")
        return held

    def pick(self, asked: int | None = None) -> tuple[Held, Why]:
        """The version that answers one request. Raises NotHeld."""
        if asked is not None:
            return self.named(asked), Why.ASKED
        choice = choose(self.held, self.promoted, self.route, self._draw())
        if choice is None:
            raise NotHeld("there is no version yet; ask again once /ready says yes")
        return self.held[choice.version], choice.why

    def _change(
        self, *, held: Mapping[int, Held] | None = None, promoted: int | None = None, route: Route | None = None
    ) -> None:
        held = self.held if held is None else held
        self.promoted = self.promoted if promoted is None else promoted
        self.route = self.route if route is None else route
        stable = serving(held, self.promoted, self.route)
        if stable is not None and self._served[-1:] != [stable.version]:
            self._served = [*(number for number in self._served if number != stable.version), stable.version]
            self._served = self._served[-_REMEMBERED:]
        wanted = {*sorted(held)[-self._keep :], self.promoted, self.route.pin, *self._served[-2:]}
        self.held = {number: held[number] for number in sorted(held) if number in wanted}
        self._changed(self)

    def _before(self) -> int | None:
        return next((number for number in reversed(self._served[:-1]) if number in self.held), None)

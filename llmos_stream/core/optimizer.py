"""Server optimisers: how the pseudo-gradient Delta moves the global weights x.

Adagrad, Yogi and Adam are Algorithm 2 of Reddi et al. 2021, "Adaptive Federated Optimization", with
its tau called epsilon here. Delta points downhill, so it is added, and there is no bias correction:

    m = beta1 m + (1 - beta1) Delta                         m = 0 at first
    Adagrad: v = v + Delta^2                                v = epsilon^2 at first
    Yogi:    v = v - (1 - beta2) Delta^2 sign(v - Delta^2)
    Adam:    v = beta2 v + (1 - beta2) Delta^2
    x = x + lr m / (sqrt(v) + epsilon)

SGD with momentum is FedAvgM (Hsu et al. 2019): `m = momentum m + Delta; x = x + lr m`. With Nesterov's it is
`x = x + lr (Delta + momentum m)`, as in torch (DiLoCo, Douillard et al. 2023, has lr 0.7 and momentum 0.9).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from llmos_stream.config import ServerOptimizerSettings
from llmos_stream.config.plugins import NoOptions
from llmos_stream.core.flat import blocks, divisor, require_flat, scratch
from llmos_stream.errors import ConfigError, StateError
from llmos_stream.types import Contribution


class ServerOptimizer(ABC):
    """One rule with its moments, each a flat vector as long as the weights.

    Subclass it, name the moments in the constructor (`self.tensors[name] = self.zeros()`) and override `move`. What
    `move` does must be rounded element by element (see `flat`), so that every replay gives the same bytes.
    """

    Options: ClassVar[type[Any]] = NoOptions
    """The pydantic model of `server_optimizer.options`."""
    counts_versions: ClassVar[bool] = False
    """Whether a step depends on which version it makes: then every version has to move the whole model."""

    def __init__(self, options: Any, settings: ServerOptimizerSettings, numel: int, device: torch.device) -> None:
        """Raises ConfigError for an `lr` outside float32."""
        _require_float32("lr", "it", settings.lr)
        self.options = options
        self.lr = settings.lr
        self.version = 0
        """The version that is being made."""
        self.stalest = 0
        """Staleness of the stalest update that it is made of."""
        self.tensors: dict[str, Tensor] = {}
        self._numel = numel
        self._device = device

    def zeros(self) -> Tensor:
        """A new moment."""
        return torch.zeros(self._numel, dtype=torch.float32, device=self._device)

    def prepare(self, version: int, manifest: Sequence[Contribution]) -> None:
        """Note of what `apply` will be the step, for a `move` that depends on it: the version, and the updates."""
        self.version = version
        self.stalest = max((item.staleness for item in manifest if item.weight), default=0)

    def apply(self, weights: Tensor, delta: Tensor, examples: float | None = None, begin: int = 0) -> Tensor:
        """The new weights, written over `delta`, which is theirs from now on. `weights` are only read.

        Both may be a range of the flat vector, from element `begin`: no other moments change. `examples` is what
        `delta` is still to be divided by: done block by block with the rest, it costs no pass.
        """
        by = None if examples is None else divisor(examples, delta)
        room, more = scratch(delta), scratch(delta)
        moving = [tensor[begin : begin + delta.numel()] for tensor in self.tensors.values()]
        for x, d, *moments in blocks(weights, delta, *moving):
            if by is not None:
                d.div_(by)
            self.move(x, d, moments, room[: d.numel()], more[: d.numel()])
        return delta

    @abstractmethod
    def move(self, x: Tensor, d: Tensor, moments: list[Tensor], a: Tensor, b: Tensor) -> None:
        """Write the new weights over `d`, and the new moments over the old; `a` and `b` may be overwritten.

        All are the same stretch of flat vectors: the weights `x` (to be read only), the pseudo-gradient `d`, and the
        moments in the order of `tensors`.
        """

    def state_tensors(self) -> dict[str, Tensor]:
        """The moments by name: the live tensors, which the next `apply` overwrites."""
        return dict(self.tensors)

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy in the moments that `state_tensors` gave. Raises StateError if they are of another rule or model."""
        if tensors.keys() != self.tensors.keys():
            raise StateError(f"server optimiser needs {sorted(self.tensors)}, the snapshot has {sorted(tensors)}")
        try:
            for name, tensor in tensors.items():
                require_flat(tensor, self.tensors[name].numel())
        except ValueError as error:
            raise StateError(f"server optimiser's moments: {error}") from None
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)


class Sgd(ServerOptimizer):
    """`x = x + lr Delta`, or with the moving sum of Delta where momentum is set, or with both for Nesterov's."""

    def __init__(self, options: Any, settings: ServerOptimizerSettings, numel: int, device: torch.device) -> None:
        super().__init__(options, settings, numel, device)
        self.momentum, self.nesterov = settings.momentum, settings.nesterov
        if self.momentum:
            self.tensors["momentum"] = self.zeros()

    def move(self, x: Tensor, d: Tensor, moments: list[Tensor], a: Tensor, b: Tensor) -> None:
        if moments:
            (m,) = moments
            m.mul_(self.momentum).add_(d)
            if self.nesterov:
                d.add_(torch.mul(m, self.momentum, out=a)).mul_(self.lr)
            else:
                torch.mul(m, self.lr, out=d)
        elif self.lr != 1.0:
            d.mul_(self.lr)
        d.add_(x)


class _Adaptive(ServerOptimizer):
    """What Adagrad, Yogi and Adam share; they differ in the second moment."""

    def __init__(self, options: Any, settings: ServerOptimizerSettings, numel: int, device: torch.device) -> None:
        super().__init__(options, settings, numel, device)
        self.beta1, self.beta2, self.epsilon = settings.beta1, settings.beta2, settings.epsilon
        _require_float32("epsilon", "its square", self.epsilon * self.epsilon)
        self.tensors = {"first_moment": self.zeros(), "second_moment": self.zeros().add_(self.epsilon**2)}

    def move(self, x: Tensor, d: Tensor, moments: list[Tensor], a: Tensor, b: Tensor) -> None:
        m, v = moments
        m.mul_(self.beta1).add_(torch.mul(d, 1.0 - self.beta1, out=a))
        self._second_moment(v, torch.mul(d, d, out=a), b)
        torch.sqrt(v, out=a).add_(self.epsilon)
        torch.div(m, a, out=d).mul_(self.lr).add_(x)

    @abstractmethod
    def _second_moment(self, v: Tensor, square: Tensor, room: Tensor) -> None:
        """Update `v` in place; `square` (Delta^2) and `room` may be overwritten."""


class Adagrad(_Adaptive):
    """The second moment is the sum of all squares."""

    def _second_moment(self, v: Tensor, square: Tensor, room: Tensor) -> None:
        v.add_(square)


class Yogi(_Adaptive):
    """The second moment moves towards the square by a step that depends on the square alone."""

    def _second_moment(self, v: Tensor, square: Tensor, room: Tensor) -> None:
        torch.sub(v, square, out=room).sign_()
        v.sub_(square.mul_(1.0 - self.beta2).mul_(room))


class Adam(_Adaptive):
    """The second moment is a moving average of squares."""

    def _second_moment(self, v: Tensor, square: Tensor, room: Tensor) -> None:
        v.mul_(self.beta2).add_(square.mul_(1.0 - self.beta2))


BUILT_IN: Mapping[str, Callable[..., ServerOptimizer]] = {"sgd": Sgd, "adagrad": Adagrad, "yogi": Yogi, "adam": Adam}


def _require_float32(name: str, what: str, value: float) -> None:
    limits = torch.finfo(torch.float32)
    if not limits.tiny <= value <= limits.max:
        raise ConfigError(f"server_optimizer.{name}: {what} is {value:.3g}, which float32 cannot hold")

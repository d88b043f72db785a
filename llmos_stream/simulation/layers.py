"""Copies of a model that is made of usual layers, by products of stacked matrices: quicker than what `torch.func` maps.

Values of linear layers are [copies, batch, features], images [copies, batch, channels, height, width], whose memory has
the channels last: so the product of a convolution leaves them, and pooling takes a fraction of the time.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import fold, max_pool2d, unfold

from llmos_stream.simulation.stacked import Parameters


class _Sink(Protocol):
    """Where gradients go."""

    def product(self, name: str, left: Tensor, right: Tensor) -> None:
        """Of a weight: `left` [copies, outputs, rows] times `right` [copies, rows, inputs]."""
        ...

    def sum(self, name: str, slope: Tensor) -> None:
        """Of a bias: the sum of `slope` [copies, rows, outputs] over the rows."""
        ...


class _Gathered:
    """Keeps them."""

    def __init__(self, parameters: Parameters) -> None:
        self._parameters = parameters
        self.found: dict[str, Tensor] = {}

    def product(self, name: str, left: Tensor, right: Tensor) -> None:
        self.found[name] = torch.bmm(left, right).view(self._parameters[name].shape)

    def sum(self, name: str, slope: Tensor) -> None:
        self.found[name] = slope.sum(dim=1)


class _Descent:
    """Adds them to the parameters at once, `-lr` times: a pass over the weights fewer, and no room for gradients."""

    def __init__(self, parameters: Parameters, lr: float) -> None:
        self._parameters, self._lr = parameters, lr

    def product(self, name: str, left: Tensor, right: Tensor) -> None:
        self._parameters[name].flatten(2).baddbmm_(left, right, alpha=-self._lr)

    def sum(self, name: str, slope: Tensor) -> None:
        self._parameters[name].sub_(slope.sum(dim=1), alpha=self._lr)


class _Layer(Protocol):
    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Any]:
        """What comes out, and what `backward` needs. `values` may be overwritten."""
        ...

    def backward(self, slope: Tensor, kept: Any, parameters: Parameters, found: _Sink, *, first: bool) -> Tensor:
        """The slope by what went in, where the layer is not the `first`; its parameters' go into `found`."""
        ...


class _Linear:
    def __init__(self, weight: str, bias: str | None) -> None:
        self._weight, self._bias = weight, bias

    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        matrix = parameters[self._weight].flatten(2).transpose(1, 2)
        if self._bias is None:
            return torch.bmm(values, matrix), values
        return torch.baddbmm(parameters[self._bias].unsqueeze(1), values, matrix), values

    def backward(self, slope: Tensor, kept: Tensor, parameters: Parameters, found: _Sink, *, first: bool) -> Tensor:
        inner = slope if first else torch.bmm(slope, parameters[self._weight].flatten(2))  # before the weight moves
        found.product(self._weight, slope.transpose(1, 2), kept)
        if self._bias is not None:
            found.sum(self._bias, slope)
        return inner


class _Convolution:
    """A linear layer on the patches that its kernels see."""

    def __init__(self, weight: str, bias: str | None, own: nn.Conv2d, padding: tuple[int, ...]) -> None:
        self._linear = _Linear(weight, bias)
        self._patches = (own.kernel_size, own.dilation, padding, own.stride)
        self._kernels = own.out_channels

    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Any]:
        copies, batch, _, *sides = values.shape
        patches = unfold(values.flatten(0, 1), *self._patches).transpose(1, 2).reshape(copies, -1, self._seen(values))
        out, kept = self._linear.forward(patches, parameters)
        found = out.view(copies, batch, *self._sides(sides), self._kernels)
        return found.permute(0, 1, 4, 2, 3), (kept, sides)

    def backward(self, slope: Tensor, kept: Any, parameters: Parameters, found: _Sink, *, first: bool) -> Tensor:
        patches, sides = kept
        copies, batch = slope.shape[:2]
        flat = slope.permute(0, 1, 3, 4, 2).reshape(copies, -1, self._kernels)
        inner = self._linear.backward(flat, patches, parameters, found, first=first)
        if first:
            return slope
        columns = inner.view(copies * batch, -1, inner.shape[2]).transpose(1, 2)
        return fold(columns, sides, *self._patches).view(copies, batch, -1, *sides)

    def _seen(self, values: Tensor) -> int:
        height, width = self._patches[0]
        return int(values.shape[2]) * height * width

    def _sides(self, sides: Sequence[int]) -> list[int]:
        each = zip(sides, *self._patches, strict=True)
        return [(side + 2 * pad - gap * (size - 1) - 1) // stride + 1 for side, size, gap, pad, stride in each]


class _Pool:
    def __init__(self, own: nn.MaxPool2d) -> None:
        self._how = (own.kernel_size, own.stride, own.padding, own.dilation, own.ceil_mode)

    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Any]:
        images = values.flatten(0, 1)
        size, stride, padding, dilation, ceil_mode = self._how
        out, places = max_pool2d(images, size, stride, padding, dilation, ceil_mode, return_indices=True)
        return _split(out, values), (images, places)

    def backward(self, slope: Tensor, kept: Any, parameters: Parameters, found: _Sink, *, first: bool) -> Tensor:
        images, places = kept
        how = [[one, one] if isinstance(one, int) else list(one) for one in self._how[:4]]
        by = torch.ops.aten.max_pool2d_with_indices_backward
        return _split(by(slope.flatten(0, 1), images, *how, self._how[4], places), slope)


def _split(images: Tensor, like: Tensor) -> Tensor:
    """[copies x batch, ...] as [copies, batch, ...]."""
    found: Tensor = images.unflatten(0, like.shape[:2])  # type: ignore[no-untyped-call]
    return found


class _Relu:
    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Tensor]:
        out = values.relu_()
        return out, out

    def backward(self, slope: Tensor, kept: Tensor, parameters: Parameters, found: _Sink, *, first: bool) -> Tensor:
        return slope.mul_(kept > 0)  # what it has let through


class _Flatten:
    def forward(self, values: Tensor, parameters: Parameters) -> tuple[Tensor, Sequence[int]]:
        return values.flatten(2), values.shape

    def backward(
        self, slope: Tensor, kept: Sequence[int], parameters: Parameters, found: _Sink, *, first: bool
    ) -> Tensor:
        return slope.view(kept)


class Layers:
    """See `Stacked`. Linear layers, convolutions, pooling and ReLU, and the cross entropy of what comes out."""

    def __init__(self, layers: Sequence[_Layer]) -> None:
        self._layers = layers

    @classmethod
    def of(cls, model: nn.Module) -> "Layers | None":
        """The layers of a model that is made of nothing else, and ends with a linear one."""
        if type(model) is not nn.Sequential:
            return None
        found = [_layer(name, module, first=at == 0) for at, (name, module) in enumerate(model.named_children())]
        layers = [layer for layer in found if layer is not None]
        return cls(layers) if layers and len(layers) == len(found) and isinstance(layers[-1], _Linear) else None

    def gradients(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor) -> Parameters:
        gathered = _Gathered(parameters)
        self._walk(parameters, inputs, targets, weights, gathered)
        return gathered.found

    def descend(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor, lr: float) -> None:
        self._walk(parameters, inputs, targets, weights, _Descent(parameters, lr))

    def _walk(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor, found: _Sink) -> None:
        values, kept = inputs, []
        for layer in self._layers:
            values, needed = layer.forward(values, parameters)
            kept.append(needed)
        slope = values.softmax(dim=2)
        slope.scatter_add_(2, targets.unsqueeze(2), slope.new_full((), -1.0).expand(*targets.shape, 1))
        slope.mul_(weights.unsqueeze(2))
        for place in range(len(self._layers) - 1, -1, -1):
            slope = self._layers[place].backward(slope, kept[place], parameters, found, first=place == 0)


def _layer(name: str, module: nn.Module, *, first: bool) -> _Layer | None:
    """The layer that does what `module` does; None for one of another type, which may do more."""
    weight, bias = f"{name}.weight", f"{name}.bias" if getattr(module, "bias", None) is not None else None
    if type(module) is nn.Linear:
        return _Linear(weight, bias)
    if type(module) is nn.Conv2d and module.groups == 1 and module.padding_mode == "zeros":
        return None if isinstance(module.padding, str) else _Convolution(weight, bias, module, module.padding)
    if type(module) is nn.MaxPool2d and not module.return_indices:
        return _Pool(module)
    if type(module) is nn.ReLU and not first:  # the data are not its own to overwrite
        return _Relu()
    if type(module) is nn.Flatten and (module.start_dim, module.end_dim) == (1, -1):
        return _Flatten()
    return None

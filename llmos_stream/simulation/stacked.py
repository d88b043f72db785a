"""Many copies of one model, each with parameters of its own, trained side by side: one step of SGD at a time.

Two forms: layers of matrix products (`Layers`), by `baddbmm`, and any model that `torch.func` can map (`Mapped`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

Parameters = Mapping[str, Tensor]
"""By name, each [copies, ...]."""


class Stacked(Protocol):
    """How gradients of all copies are found."""

    def gradients(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor) -> Parameters:
        """The gradients of each copy's mean loss.

        Args:
            parameters: Of all copies.
            inputs: [copies, batch, ...].
            targets: [copies, batch].
            weights: [copies, batch]: the part of each example in its copy's mean, 0 for padding.
        """
        ...


class Mapped:
    """Any model, by `vmap` over parameters and data. `loss` is a mean over the examples of a batch."""

    def __init__(self, model: nn.Module, loss: Callable[[Any, Any], Tensor]) -> None:
        def one(parameters: dict[str, Tensor], inputs: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
            outputs = functional_call(model, parameters, (inputs,))
            each = vmap(lambda output, target: loss(output.unsqueeze(0), target.unsqueeze(0)))(outputs, targets)
            return (each * weights).sum()

        self._gradients = vmap(grad(one))

    def gradients(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor) -> Parameters:
        found: Parameters = self._gradients(dict(parameters), inputs, targets, weights)
        return found


class Layers:
    """Linear layers with ReLU between them and cross entropy at the end, by products of stacked matrices.

    names: of each layer's weight and bias (None: it has none); active: whether ReLU follows.
    """

    def __init__(self, names: Sequence[tuple[str, str | None]], active: Sequence[bool]) -> None:
        self._names = names
        self._active = active

    @classmethod
    def of(cls, model: nn.Module) -> "Layers | None":
        """The layers of a model that is made of nothing else."""
        if type(model) is not nn.Sequential:
            return None
        names: list[tuple[str, str | None]] = []
        active: list[bool] = []
        for place, module in model.named_children():
            match module:
                case nn.Linear() if type(module) is nn.Linear:
                    names.append(
                        (f"{place}.weight", f"{place}.bias" if "bias" in dict(module.named_parameters()) else None)
                    )
                    active.append(False)
                case nn.ReLU() if names and not active[-1]:
                    active[-1] = True
                case nn.Flatten(start_dim=1, end_dim=-1) if not names:
                    pass
                case _:
                    return None
        return cls(names, active) if names and not active[-1] else None

    def gradients(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor) -> Parameters:
        values, entered = inputs.flatten(2), []
        for (weight, bias), active in zip(self._names, self._active, strict=True):
            entered.append(values)
            matrix = parameters[weight].transpose(1, 2)
            values = torch.bmm(values, matrix) if bias is None else _shifted(values, matrix, parameters[bias])
            if active:
                values = values.relu_()
        slope = values.softmax(dim=2)
        slope.scatter_add_(2, targets.unsqueeze(2), slope.new_full((), -1.0).expand(*targets.shape, 1))
        slope.mul_(weights.unsqueeze(2))
        found: dict[str, Tensor] = {}
        for place in range(len(self._names) - 1, -1, -1):
            weight, bias = self._names[place]
            found[weight] = torch.bmm(slope.transpose(1, 2), entered[place])
            if bias is not None:
                found[bias] = slope.sum(dim=1)
            if place:
                slope = torch.bmm(slope, parameters[weight])
                slope.mul_(entered[place] > 0)  # what ReLU has let through
        return found


def _shifted(values: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    return torch.baddbmm(bias.unsqueeze(1), values, matrix)

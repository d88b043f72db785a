"""Many copies of one model, each with parameters of its own, trained side by side: one step of SGD at a time.

Two forms: any model that `torch.func` can map (`Mapped`), and what is made of usual layers alone (see `layers`).
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

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

    def descend(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor, lr: float) -> None:
        """A step of plain SGD: move the parameters by `-lr` times these gradients."""
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

    def descend(self, parameters: Parameters, inputs: Tensor, targets: Tensor, weights: Tensor, lr: float) -> None:
        found = self.gradients(parameters, inputs, targets, weights)
        for name, tensor in parameters.items():
            tensor.add_(found[name], alpha=-lr)

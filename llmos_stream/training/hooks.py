"""What a client may do at fixed points of its training, and what is built on that: FedProx and clipped gradients.

A hook of your own derives from `Hook`. `FederatedLearning(..., hooks=[...])` takes them, and the client role those that
the task's `hooks()` gives.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from llmos_stream.config import ClientSettings
from llmos_stream.training.sharing import trained_parameters


class Hook:
    """Does nothing at each point; override what you need."""

    def before_training(self, model: nn.Module, version: int) -> None:
        """The model has the weights of this version, and nothing has been trained on them."""

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        """The loss of a batch: return the one to be differentiated. What the client reports stays `loss` itself."""
        return loss

    def before_step(self, model: nn.Module) -> None:
        """The gradients of a batch are there, and the optimiser's step comes next."""

    def after_training(self, delta: Mapping[str, Tensor]) -> None:
        """What training added to each shared parameter (float32, on the CPU); it may be written over, in place."""


class Proximal(Hook):
    """FedProx (Li et al. 2020): each batch's loss plus mu / 2 ||w - w_base||^2, with w_base of the version.

    w are the shared parameters that are trained: what is a client's own is not held back. One more copy of them is in
    memory while the client trains.
    """

    def __init__(self, mu: float, share: str = "all") -> None:
        self._mu = mu
        self._share = share
        self._pairs: list[tuple[Tensor, Tensor]] = []

    def before_training(self, model: nn.Module, version: int) -> None:
        parameters = trained_parameters(model, self._share)
        self._pairs = [(parameter, parameter.detach().clone()) for parameter in parameters]

    def on_loss(self, loss: Tensor, model: nn.Module) -> Tensor:
        squares = [(parameter - base).square().sum() for parameter, base in self._pairs]
        return loss + sum(squares) * (self._mu / 2)

    def after_training(self, delta: Mapping[str, Tensor]) -> None:
        self._pairs = []


class ClippedGradients(Hook):
    """Scales the gradients of a batch down where their L2 norm, taken over all parameters, is above `max_norm`."""

    def __init__(self, max_norm: float) -> None:
        self._max_norm = max_norm

    def before_step(self, model: nn.Module) -> None:
        gradients = [one.grad for one in model.parameters() if one.grad is not None]
        if not any(one.is_sparse for one in gradients):
            torch.nn.utils.clip_grad_norm_(model.parameters(), self._max_norm)
            return
        # torch has no norm of a sparse gradient (nn.Embedding's and nn.EmbeddingBag's): it is that of what it holds.
        held = [one.coalesce().values() if one.is_sparse else one for one in gradients]
        norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(one) for one in held]))
        factor = min(1.0, self._max_norm / (float(norm) + 1e-6))
        for one in gradients:
            one.mul_(factor)


def hooks_of(settings: ClientSettings, share: str) -> Sequence[Hook]:
    """The hooks that the settings ask for."""
    found: list[Hook] = []
    if settings.proximal_mu:
        found.append(Proximal(settings.proximal_mu, share))
    if settings.max_grad_norm is not None:
        found.append(ClippedGradients(settings.max_grad_norm))
    return found

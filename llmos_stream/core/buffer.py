"""The buffer of FedBuff: a running sum, so that its size does not depend on how many updates it holds.

    acc += n_i s(tau_i) c_i Delta_i        Delta = acc / sum n_i

The sum is divided by the examples and not by the weights, so a stale buffer gives a smaller step,
not a full one in a stale direction.
"""

import torch
from torch import Tensor

from llmos_stream.core.flat import add_scaled
from llmos_stream.types import Contribution


class Buffer:
    """Updates waiting to become a version.

    capacity: how many make it full. deadline_seconds: it is due this long after its first update.
    """

    def __init__(self, capacity: int, deadline_seconds: float) -> None:
        self.capacity = capacity
        self.deadline_seconds = deadline_seconds
        self.opened_at: float | None = None
        self.contributions: list[Contribution] = []
        self._total: Tensor | None = None

    def fold(self, contribution: Contribution, delta: Tensor, now: float) -> None:
        """Add `weight * clip * delta`. `delta` is only read and not kept."""
        factor = contribution.weight * contribution.clip
        if self._total is None:
            self._total = torch.mul(delta, factor)
            self.opened_at = now
        else:
            add_scaled(self._total, delta, factor)
        self.contributions.append(contribution)

    def deadline(self) -> float | None:
        """When it must become a version; None while it is empty."""
        return None if self.opened_at is None else self.opened_at + self.deadline_seconds

    def due(self, now: float) -> bool:
        """Whether it is full or its deadline has come. An empty buffer is never due."""
        deadline = self.deadline()
        return deadline is not None and (len(self.contributions) >= self.capacity or now >= deadline)

    def drain(self) -> tuple[Tensor, tuple[Contribution, ...]]:
        """The pseudo-gradient, which is the caller's to overwrite, and the manifest. Leaves the buffer empty.

        Raises ValueError if it was empty already.
        """
        if self._total is None:
            raise ValueError("an empty buffer has no pseudo-gradient")
        examples = sum(contribution.num_examples for contribution in self.contributions)
        delta = self._total.div_(float(examples))  # as a float: the sum of 64-bit counts may need more bits
        manifest = tuple(self.contributions)
        self._total, self.opened_at, self.contributions = None, None, []
        return delta, manifest

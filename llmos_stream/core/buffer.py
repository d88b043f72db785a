"""The buffer of FedBuff: a running sum, so that its size does not depend on how many updates it holds.

    acc += n_i s(tau_i) c_i Delta_i        Delta = acc / sum n_i

The sum is divided by the examples and not by the weights, so a stale buffer gives a smaller step,
not a full one in a stale direction.
"""

import torch
from torch import Tensor

from llmos_stream.core.delta import Delta, as_delta
from llmos_stream.core.device import Upload
from llmos_stream.types import Contribution


class Buffer:
    """Updates waiting to become a version, their sum on `device`.

    capacity: how many make it full. deadline_seconds: it is due this long after its first update.
    """

    def __init__(self, capacity: int, deadline_seconds: float, device: torch.device | None = None) -> None:
        self.capacity = capacity
        self.deadline_seconds = deadline_seconds
        self._device = device or torch.device("cpu")
        self._upload = Upload(self._device)
        self.opened_at: float | None = None
        self.contributions: list[Contribution] = []
        self._total: Tensor | None = None

    def fold(self, contribution: Contribution, delta: Tensor | Delta, now: float) -> None:
        """Add `weight * clip * delta`, in one pass over the sum. `delta` is only read and not kept.

        What a delta raises while it is walked through leaves a sum of no use: start again from the log.
        """
        delta, factor = as_delta(delta), contribution.weight * contribution.clip
        first = self._total is None
        total = torch.empty(delta.numel, device=self._device) if self._total is None else self._total
        at = 0
        for part in self._upload.blocks(delta.slices(factor)):
            sums = total[at : at + part.numel()]
            if first:
                sums.copy_(part)
            else:
                sums.add_(part)
            at += part.numel()
        if at != total.numel():
            raise ValueError(f"a delta of {at} elements where {total.numel()} are summed up")
        if first:
            self._total, self.opened_at = total, now
        self.contributions.append(contribution)

    def deadline(self) -> float | None:
        """When it must become a version; None while it is empty."""
        return None if self.opened_at is None else self.opened_at + self.deadline_seconds

    def due(self, now: float) -> bool:
        """Whether it is full or its deadline has come. An empty buffer is never due."""
        deadline = self.deadline()
        return deadline is not None and (len(self.contributions) >= self.capacity or now >= deadline)

    def drain(self) -> tuple[Tensor, float, tuple[Contribution, ...]]:
        """The sum, which is the caller's to overwrite, the examples to divide it by, and the manifest.

        Leaves the buffer empty. Raises ValueError if it was empty already.
        """
        if self._total is None:
            raise ValueError("an empty buffer has no pseudo-gradient")
        examples = sum(contribution.num_examples for contribution in self.contributions)
        drained = self._total, float(examples), tuple(self.contributions)  # the sum of 64-bit counts may need more bits
        self._total, self.opened_at, self.contributions = None, None, []
        return drained

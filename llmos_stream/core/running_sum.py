"""A weighted sum of deltas, taken as they come, so that its size does not depend on how many there are."""

import torch
from torch import Tensor

from llmos_stream.core.delta import Delta
from llmos_stream.core.device import Upload


class RunningSum:
    """`sum_i f_i Delta_i`, on `device` (else the CPU), with room for `behind` elements after it."""

    def __init__(self, device: torch.device | None = None, behind: int = 0) -> None:
        self._device = device or torch.device("cpu")
        self._behind = behind
        self._upload = Upload(self._device)
        self._total: Tensor | None = None

    def add(self, delta: Delta, factor: float) -> None:
        """Add `factor * delta`, in one pass over the sum. `delta` is only read and not kept.

        What a delta raises while it is walked through leaves a sum of no use: start again from the log.
        """
        first = self._total is None
        total = self._total
        if total is None:
            total = torch.empty(delta.numel + self._behind, dtype=torch.float32, device=self._device)
        at = 0
        for part in self._upload.blocks(delta.slices(factor)):
            count = part.numel()
            sums = total if count == total.numel() else total[at : at + count]
            if first:
                sums.copy_(part)
            else:
                sums.add_(part)
            at += count
        if at + self._behind != total.numel():
            raise ValueError(f"a delta of {at} elements where {total.numel() - self._behind} are summed up")
        self._total = total

    def drain(self) -> Tensor:
        """The sum and the room, which are the caller's to overwrite; the next one begins anew.

        Raises ValueError if there is none.
        """
        if self._total is None:
            raise ValueError("nothing has been summed up")
        total, self._total = self._total, None
        return total

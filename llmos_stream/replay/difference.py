"""How far two sets of weights lie apart."""

from dataclasses import dataclass

import torch
from torch import Tensor

from llmos_stream.core.flat import l2_norm


@dataclass(frozen=True, slots=True)
class Difference:
    """`max_abs`: the largest difference of an element; `relative_l2`: its norm over that of the second vector."""

    max_abs: float
    relative_l2: float


def difference(one: Tensor, other: Tensor) -> Difference:
    """Of two flat vectors of the same length."""
    apart = torch.sub(one, other)
    norm, of = l2_norm(apart), l2_norm(other)
    relative = 0.0 if norm == 0 else norm / of if of else float("inf")
    return Difference(float(apart.abs_().max()) if apart.numel() else 0.0, relative)

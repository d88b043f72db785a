"""The buffers of a version: measurements, which are averaged as values and never leave the range of what was sent.

    x <- (1 - m) x + m sum_i w_i v_i / sum_i w_i

over the contributions of a weight w_i > 0, where v_i is what a client sent, and m says how far a version moves (see
`Strategy.mixing`). Neither moments nor a learning rate, a clip factor or noise have a part in it.

An entry that nobody changed stays as it is, bit for bit. One that is not finite (a mask of -inf, an observer that has
seen nothing) becomes the mean of those that have measured it, m being 1 there; the others have nothing to say. All is
computed in float64, one contribution after the other, and kept between the least and the largest of x and v_i: so the
rounding to float32 cannot leave their hull either.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import TensorSpec


class BufferMean:
    """The weighted mean of the values that are finite, entry by entry, and their hull. On the CPU."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None

    def add(self, values: Tensor, weight: float) -> None:
        """Take in what one client sent (flat). A weight of 0 takes no part."""
        if not weight:
            return
        if self._sum is None:
            self._sum, self._weight = values.new_zeros((2, values.numel()), dtype=torch.float64)
            self._low, self._high = torch.full_like(values, torch.inf), torch.full_like(values, -torch.inf)
        measured = values.isfinite()
        self._sum.add_(torch.where(measured, values.double() * weight, 0.0))
        self._weight.add_(torch.where(measured, weight, 0.0))
        torch.minimum(self._low, torch.where(measured, values, torch.inf), out=self._low)
        torch.maximum(self._high, torch.where(measured, values, -torch.inf), out=self._high)

    def mixed_into(self, old: Tensor, mixing: float) -> Tensor:
        """The new values of `old` (flat), which is only read."""
        if self._sum is None:
            return old
        mean, known = self._sum / self._weight, old.isfinite()
        new = torch.where(known, old.double() * (1.0 - mixing) + mean * mixing, mean).float()
        unchanged = (self._weight == 0) | ((self._low == old) & (self._high == old))
        return torch.where(unchanged, old, within(new, self._low, self._high, old if mixing < 1 else None))


def within(new: Tensor, low: Tensor, high: Tensor, old: Tensor | None = None) -> Tensor:
    """`new`, kept between `low` and `high`, and `old` where it is finite."""
    if old is not None:
        known = old.isfinite()
        low = torch.where(known, torch.minimum(low, old), low)
        high = torch.where(known, torch.maximum(high, old), high)
    return torch.minimum(torch.maximum(new, low), high)


def check_buffers(values: Tensor | None, current: Tensor, specs: Sequence[TensorSpec]) -> None:
    """That an update has all buffers, and that they are finite where those of the `current` version are.

    Raises Rejected: WRONG_LAYOUT or NOT_FINITE, with the tensor's name.
    """
    count = 0 if values is None else values.numel()
    if count != current.numel():
        raise Rejected(Reason.WRONG_LAYOUT, f"{count} elements of buffers, the layout has {current.numel()}")
    if values is None or values.isfinite().all():
        return
    as_before = (values == current) | (values.isnan() & current.isnan())
    for place in (~(values.isfinite() | as_before)).nonzero().flatten()[:1].tolist():
        name = name_of(specs, place)
        raise Rejected(Reason.NOT_FINITE, f"{name} became {float(values[place])}, it was {float(current[place]):g}")


def name_of(specs: Sequence[TensorSpec], place: int) -> str:
    """The name of the tensor in which an element of a flat vector lies."""
    for spec in specs:
        if place < spec.numel:
            return spec.name
        place -= spec.numel
    raise ValueError("no tensor lies there")

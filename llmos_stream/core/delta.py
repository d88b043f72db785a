"""What an update adds, in whatever form it is held: a flat vector, or something that yields its values anew."""

import math
from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from llmos_stream.core.flat import block_views, l2_norm, require_flat, scratch


class Delta(Protocol):
    """A decoded delta. Its values are the same however often they are walked through."""

    @property
    def numel(self) -> int:
        """Elements in all."""
        ...

    def norm(self) -> float:
        """The L2 norm, bit for bit what `flat.l2_norm` gives; NaN or infinite only if an element is.

        May raise Rejected where the values are only now decoded.
        """
        ...

    def bound(self) -> float:
        """What the norm cannot exceed, at next to no cost; NaN or infinite where that is not known.

        May raise Rejected as `norm` does.
        """
        ...

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        """The flat vector's parts in order, of any lengths; each element times `factor` where there is one, rounded.

        1-D float32 on the CPU, to be read only, each valid until the next is drawn. Raises nothing that an update could
        bring about once `bound` or `norm` has said that it is sound.
        """
        ...

    def keep(self) -> "Delta":
        """The same values for as long as they are wanted, and not for this step alone.

        What is behind this delta goes to the one returned, where that saves a copy.
        """
        ...


class Whole:
    """A flat vector as a delta; where it is `owned`, nobody will write to it any more.

    Raises:
        ValueError: It is no flat vector.
    """

    def __init__(self, flat: Tensor, *, owned: bool = False) -> None:
        require_flat(flat)
        self._flat = flat
        self._owned = owned

    @property
    def numel(self) -> int:
        return self._flat.numel()

    def norm(self) -> float:
        return l2_norm(self._flat)

    def bound(self) -> float:
        return math.inf

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        parts = block_views(self._flat)
        if factor is None:
            yield from parts
        elif len(parts) == 1:
            yield torch.mul(self._flat, factor)
        else:
            room = scratch(self._flat)
            for part in parts:
                yield torch.mul(part, factor, out=room[: part.numel()])

    def keep(self) -> "Whole":
        return self if self._owned else Whole(self._flat.clone(), owned=True)


def as_delta(delta: Tensor | Delta) -> Delta:
    """`delta` itself, or a flat vector as one. Raises ValueError for any other tensor."""
    return Whole(delta) if isinstance(delta, Tensor) else delta

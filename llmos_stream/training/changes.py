"""What an update holds: what training added to the parameters, and the values of the buffers."""

from collections.abc import Callable

import torch
from torch import Tensor

from llmos_stream.codec import Layout, is_finite
from llmos_stream.errors import TaskError
from llmos_stream.types import TensorSpec


def change_of(
    layout: Layout, base: Tensor, weights: Tensor, after: Callable[[], Tensor], advice: str = "lower the learning rate"
) -> tuple[Tensor, Tensor]:
    """What was added to the parameters of `base`, with which the training began, and the values of the buffers after.

    Nothing was added where an infinity is still the same. A buffer that was not changed is as in `weights`, the version
    itself, whatever the model's precision makes of that.

    Args:
        layout: How the flat vectors are cut into tensors.
        base: What the model made of the version.
        weights: The version.
        after: Gives a new flat vector of what the training has come to; it is written over.
        advice: What to do where a change is not finite.

    Raises:
        TaskError: A change is not finite.
    """
    (delta, buffers), (before, measured) = layout.parts(after()), layout.parts(base)
    unchanged = buffers.view(torch.int32) == measured.view(torch.int32)
    broken = (unchanged | buffers.isfinite()).logical_not()
    if not is_finite(delta.sub_(before)) or broken.any():
        again = after()
        delta.masked_fill_(layout.parts(again)[0].view(torch.int32) == before.view(torch.int32), 0.0)
        if (marked := torch.cat([delta.isfinite().logical_not(), broken])).any():
            spec, at = first_marked(layout, marked)
            was, became = float(base[at]), float(again[at])
            raise TaskError(f"training made {spec.name} not finite: {was:g} became {became:g}; {advice}")
    return delta, torch.where(unchanged, layout.parts(weights)[1], buffers)


def first_marked(layout: Layout, marked: Tensor) -> tuple[TensorSpec, int]:
    """The first element of the flat vector that is marked: in which tensor, and where in the vector."""
    at, end = int(marked.nonzero()[0]), 0
    for spec in layout.tensors:
        end += spec.numel
        if at < end:
            return spec, at
    raise ValueError(f"element {at} is in no tensor of the layout")

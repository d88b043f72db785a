"""What must hold of an update before anything is changed by it."""

import math
from dataclasses import dataclass

from torch import Tensor

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core.delta import Delta, as_delta
from llmos_stream.core.staleness import staleness_of
from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import UpdateHead

LARGEST_NORM = 1e15
"""A longer delta is refused, clipped or not.

Its square fits float32 (the second moments of the server optimisers), and so does the sum of 2048
deltas as long as this with 64-bit example counts: 2048 * 2^64 * 1e15 < 3.4e38. No accumulator can overflow.
"""
_LARGEST_SEQUENCE = 2**63 - 1
_MARGIN = 1 + 1e-4
"""More than the norm as it is computed can be off: so what it decides never depends on whether it was computed."""


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """A client's update: its head, where in the log it stands, its decoded delta, and the values of its buffers.

    `delta` is a flat vector, or what yields one, and is only read here. It is not kept once a step has returned.
    `buffers` is a flat vector that nobody writes to any more.
    """

    head: UpdateHead
    partition: int
    offset: int
    delta: Tensor | Delta
    buffers: Tensor | None = None


def check_head(
    head: UpdateHead,
    *,
    version: int,
    layout_digest: bytes,
    aggregation: AggregationSettings,
    staleness: StalenessSettings,
) -> int:
    """All that can be told without the payload. Returns the staleness at the global `version`.

    Raises Rejected: MALFORMED (sequence not in 0..2^63-1), WRONG_LAYOUT, BAD_NUM_EXAMPLES,
    UNKNOWN_BASE_VERSION or TOO_STALE.
    """
    if not 0 <= head.sequence <= _LARGEST_SEQUENCE:
        raise Rejected(Reason.MALFORMED, f"sequence {head.sequence} is not in 0..2^63-1")
    if head.layout_digest != layout_digest:
        raise Rejected(
            Reason.WRONG_LAYOUT,
            f"layout {head.layout_digest.hex()[:16]}, the federation has {layout_digest.hex()[:16]}",
        )
    if not 0 < head.num_examples <= aggregation.max_num_examples:
        raise Rejected(
            Reason.BAD_NUM_EXAMPLES, f"{head.num_examples} examples, allowed are 1 to {aggregation.max_num_examples}"
        )
    return staleness_of(head.base_version, version, staleness)


def check_and_clip(delta: Tensor | Delta, numel: int, limit: float | None) -> float:
    """The clip factor of a delta, every element of which is finite: without its norm where its bound is small enough.

    Raises Rejected: WRONG_LAYOUT if there are not `numel` elements, NOT_FINITE (see `clip_factor` too), or what
    decoding only now raises. Raises ValueError for a tensor that is no flat vector, which is the decoder's fault.
    """
    delta = as_delta(delta)
    if delta.numel != numel:
        raise Rejected(Reason.WRONG_LAYOUT, f"{delta.numel} elements, the layout has {numel}")
    if delta.bound() * _MARGIN <= min(LARGEST_NORM, math.inf if limit is None else limit):
        return 1.0
    norm = delta.norm()
    if not math.isfinite(norm):
        raise Rejected(Reason.NOT_FINITE, "the delta holds NaN or infinity")
    return clip_factor(norm, limit)


def clip_factor(norm: float, limit: float | None) -> float:
    """The factor that brings a delta of L2 norm `norm` within `limit`: `min(1, limit / norm)`.

    Raises Rejected NOT_FINITE above LARGEST_NORM: such a delta is noise, and float32 cannot fold it.
    """
    if norm > LARGEST_NORM:
        raise Rejected(Reason.NOT_FINITE, f"the delta's L2 norm {norm:.3g} is beyond {LARGEST_NORM:.0e}")
    if limit is None or norm <= limit:
        return 1.0
    return limit / norm

"""FedAsync (Xie et al. 2019): every update is a version, mixed into the global model on arrival.

    w <- (1 - alpha s(tau)) w + alpha s(tau) (w_base + c Delta)

The client's model `w_base + Delta` is mixed in, not its delta, so the weights of the last
`staleness.maximum + 1` versions are held: they are the published tensors, not copies, but that many
models must fit in memory (the GPU's, where that folds). The number of examples plays no part in this rule.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from llmos_stream.config import AggregationSettings, StalenessSettings
from llmos_stream.core.delta import Delta, as_delta
from llmos_stream.core.device import Upload
from llmos_stream.core.flat import require_flat, scratch
from llmos_stream.core.staleness import discount
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.types import Contribution


class FedAsync:
    """See `strategy.Strategy` for the methods. `history` maps the versions held to their weights."""

    def __init__(self, aggregation: AggregationSettings, staleness: StalenessSettings, history: Mapping[int, Tensor]):
        self._mixing = aggregation.mixing
        self._staleness = staleness
        self._history = dict(history)
        self._waiting: tuple[Contribution, Delta] | None = None

    def check_base(self, base_version: int) -> None:
        """Raises Rejected UNKNOWN_BASE_VERSION if its weights are not held (not read back after a restart)."""
        if base_version not in self._history:
            raise Rejected(Reason.UNKNOWN_BASE_VERSION, f"the weights of version {base_version} are not held")

    def weigh(self, num_examples: int, tau: int) -> float:
        """`alpha s(tau_i)`, from the alpha of the settings every time."""
        return self._mixing * discount(tau, self._staleness)

    def fold(self, contribution: Contribution, delta: Tensor | Delta, now: float) -> None:
        if self._waiting is not None:
            raise ValueError("flush before the next fold: every update is a version")
        self._waiting = (contribution, as_delta(delta))

    def due(self, now: float) -> bool:
        return self._waiting is not None

    def deadline(self) -> float | None:
        return None

    def pending(self) -> int:
        return int(self._waiting is not None)

    def flush(self, version: int, weights: Tensor) -> tuple[Tensor, tuple[Contribution, ...]]:
        if self._waiting is None:
            raise ValueError("there is no update to mix in")
        contribution, delta = self._waiting
        base = self._history[version - contribution.staleness]
        mixed = _mix(weights, base, delta, contribution.clip, contribution.weight)
        self._waiting = None
        self._history[version + 1] = mixed
        self._history.pop(version - self._staleness.maximum, None)
        return mixed, (contribution,)

    def state_tensors(self) -> dict[str, Tensor]:
        """None: past weights are read back from the log."""
        return {}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        if tensors:
            raise StateError(f"fedasync keeps no moments, the snapshot has {sorted(tensors)}")


def held(
    version: int, weights: Tensor, past: Mapping[int, Tensor] | None, staleness: StalenessSettings
) -> dict[int, Tensor]:
    """The history to start from: `weights` as `version`, and those of `past` that an update may still name.

    Raises ValueError if one of them is not as long as `weights`.
    """
    oldest = version - staleness.maximum
    history = {number: flat for number, flat in sorted((past or {}).items()) if oldest <= number < version}
    for flat in history.values():
        require_flat(flat, weights.numel())
    return {**{number: flat.to(weights.device) for number, flat in history.items()}, version: weights}


def _mix(weights: Tensor, base: Tensor, delta: Delta, clip: float, rate: float) -> Tensor:
    """`(1 - rate) weights + rate (base + clip delta)`, in a fresh tensor."""
    mixed = torch.empty_like(weights)
    room = scratch(weights)
    at = 0
    for d in Upload(weights.device).blocks(delta.slices(clip)):
        out, w, b = (flat[at : at + d.numel()] for flat in (mixed, weights, base))
        torch.add(d, b, out=out).mul_(rate)
        out.add_(torch.mul(w, 1.0 - rate, out=room[: w.numel()]))
        at += d.numel()
    if at != mixed.numel():
        raise ValueError(f"a delta of {at} elements for {mixed.numel()} weights")
    return mixed

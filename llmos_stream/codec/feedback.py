"""Error feedback: what a lossy codec leaves out of one update goes into the next.

With residual e_0 = 0, the client sends q_t = C(d_t + e_t) for its delta d_t and keeps e_{t+1} = d_t + e_t - q_t. So the
sum of what was sent is the sum of the deltas less the last residual: nothing is lost, only late (Seide et al. 2014;
Karimireddy et al. 2019).
"""

import torch
from torch import Generator, Tensor

from llmos_stream.codec.layout import check_flat
from llmos_stream.codec.payload import encode
from llmos_stream.errors import StateError
from llmos_stream.types import CodecSpec


class ErrorFeedback:
    """The residual of one client for a layout of `numel` elements.

    `encode` leaves the residual as it is; `commit` puts the new one in its place once the update is durable, and
    `rollback` drops the new one if it is not. Not for use by two threads at a time.
    """

    def __init__(self, numel: int) -> None:
        self._numel = numel
        self._residual: Tensor | None = None
        self._pending: Tensor | None = None

    @property
    def residual(self) -> Tensor | None:
        """The committed residual (a flat vector, not a copy: do not write to it), or None for zeros."""
        return self._residual

    @residual.setter
    def residual(self, value: Tensor | None) -> None:
        """Take over a stored residual. Raises StateError if it is not finite or of another layout."""
        if value is not None:
            try:
                check_flat(value, self._numel)
            except ValueError as error:
                raise StateError(f"the stored residual does not fit this model: {error}") from None
            if not _is_finite(value):
                raise StateError("the stored residual is damaged: it holds NaN or infinity")
        self._residual = value
        self._pending = None

    def encode(
        self, delta: Tensor, spec: CodecSpec, *, level: int = 1, generator: Generator | None = None
    ) -> list[bytes]:
        """The payload of `delta` (a flat vector, not changed) plus the residual.

        Raises ValueError: for a delta of another length or with NaN or infinity, or if the last payload has been
        neither committed nor rolled back. Then nothing has changed.
        """
        if self._pending is not None:
            raise ValueError("commit or roll back the last update before encoding the next")
        delta = check_flat(delta, self._numel).detach()
        total = delta.clone() if self._residual is None else delta + self._residual
        if not _is_finite(total):
            raise ValueError("the delta holds NaN or infinity")
        parts = list(encode(total, spec, level=level, generator=generator, lost=total))
        self._pending = total
        return parts

    def commit(self) -> None:
        """The encoded update is durable: keep what it left out. Raises ValueError if there is none."""
        if self._pending is None:
            raise ValueError("there is no encoded update to commit")
        self._residual, self._pending = self._pending, None

    def rollback(self) -> None:
        """The encoded update, if any, will not be sent: keep the old residual."""
        self._pending = None


def _is_finite(flat: Tensor) -> bool:
    # The largest magnitude is NaN or infinite if any element is; isfinite would allocate a mask.
    return flat.numel() == 0 or bool(torch.stack(flat.aminmax()).isfinite().all())

"""Error feedback: what a lossy codec leaves out of one update goes into the next.

With residual e_0 = 0, the client sends q_t = C(d_t + e_t) for its delta d_t and keeps e_{t+1} = d_t + e_t - q_t. So the
sum of what was sent is the sum of the deltas less the last residual: nothing is lost, only late (Seide et al. 2014;
Karimireddy et al. 2019).

With a decay b below 1 it is q_t = C(d_t + b e_t) and e_{t+1} = d_t + b e_t - q_t: what stays behind for long was learnt
on old weights, and fades (SparseLoCo, Sarfi et al. 2025, has 0.95).
"""

from collections.abc import Iterator

from torch import Generator, Tensor

from llmos_stream.codec.layout import check_flat, is_finite
from llmos_stream.codec.payload import SLICE, encode
from llmos_stream.errors import StateError
from llmos_stream.types import CodecId, CodecSpec

_PASS_ALL = frozenset({CodecId.FLOAT32, CodecId.FLOAT16, CodecId.BFLOAT16})
"""Codecs that do not object to NaN and infinity themselves."""


class ErrorFeedback:
    """The residual of one client for a layout of `numel` elements.

    `frames` leaves the residual as it is; `commit` puts the new one in its place once the update is
    durable, and `rollback` drops the new one if it is not. Not for use by two threads at a time.

    The new residual is written over the delta that it comes of, so that an update takes no third vector as long as the
    model.
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
        """Take over a stored residual; it is this object's from then on.

        Raises:
            StateError: It is not finite or of another layout.
        """
        if value is not None:
            try:
                check_flat(value, self._numel)
            except ValueError as error:
                raise StateError(f"the stored residual does not fit this model: {error}") from None
            if not is_finite(value):
                raise StateError("the stored residual is damaged: it holds NaN or infinity")
        self._residual = value
        self._pending = None

    @property
    def pending(self) -> Tensor | None:
        """The residual that `commit` would put in place (not a copy), or None where there is none."""
        return self._pending

    def frames(
        self,
        delta: Tensor,
        spec: CodecSpec,
        *,
        level: int = 1,
        generator: Generator | None = None,
        decay: float = 1.0,
        elements: tuple[int, int] | None = None,
    ) -> Iterator[bytes]:
        """The payload of `delta` (a flat vector) plus `decay` times the residual, each frame made when it is asked for.

        Where only some `elements` (begin, end) are sent, what the others have in `delta` is forgotten, and their
        residual stays as it is.

        The new residual is there to commit once all frames have been drawn. It is `delta`, written over as the frames
        are drawn, whatever comes of them; before, and after an error, the old residual is as it was.

        Raises:
            ValueError: The delta has another length, or was given before, or the last payload has been neither
                committed nor rolled back; and, when it is their slice's turn, it has NaN or infinity.
        """
        if self._pending is not None:
            raise ValueError("commit or roll back the last update before encoding the next")
        total = check_flat(delta, self._numel).detach()
        if self._residual is not None and self._numel and total.data_ptr() == self._residual.data_ptr():
            raise ValueError("this delta was encoded before, and holds what that left out")
        begin, end = elements or (0, self._numel)
        sent = total[begin:end]
        frames = encode(sent, spec, level=level, generator=generator, residual=sent)
        return self._drawn(total, (begin, end), frames, decay, passes_all=spec.id in _PASS_ALL)

    def _drawn(
        self, total: Tensor, elements: tuple[int, int], frames: Iterator[bytes], decay: float, *, passes_all: bool
    ) -> Iterator[bytes]:
        """Add to each slice of `total` just before its frame is made of it, so that it is in the cache by then."""
        begin, end = elements
        for at in range(begin, end, SLICE):
            here = slice(at, min(at + SLICE, end))
            values = total[here]
            if self._residual is not None:
                values.add_(self._residual[here], alpha=decay)
            if passes_all and not is_finite(values):
                raise ValueError("the delta holds NaN or infinity")
            yield next(frames)
        for rest in (slice(0, begin), slice(end, None)):
            if self._residual is None:
                total[rest].zero_()
            else:
                total[rest].copy_(self._residual[rest])
        self._pending = total

    def commit(self) -> None:
        """The encoded update is durable: keep what it left out.

        Raises:
            ValueError: There is no encoded update.
        """
        if self._pending is None:
            raise ValueError("there is no encoded update to commit")
        self._residual, self._pending = self._pending, None

    def rollback(self) -> None:
        """The encoded update, if any, will not be sent: keep the old residual."""
        self._pending = None

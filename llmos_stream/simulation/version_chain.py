"""What readers have of each version, and the bytes that it takes to bring it to them.

Where an experiment is `coded`, a version goes through the codec of delta versions, with its residual, as in the log.
Else readers have the weights as they were made, and its bytes are those of the newest sample that was encoded.
"""

from torch import Tensor

from llmos_stream.codec import Layout, Residual, add_residual, begin_delta, delta_codec, encode
from llmos_stream.simulation.settings import RunSettings
from llmos_stream.types import CodecId, CodecSpec

_FULL = CodecSpec(CodecId.FLOAT32)
_SAMPLED_EVERY = 256


class VersionChain:
    """The versions from number 0 on, whose `weights` (flat) are given. A version is encoded, then committed."""

    def __init__(self, settings: RunSettings, layout: Layout, weights: Tensor) -> None:
        self.weights = weights
        self._layout = layout
        self._coded = settings.simulation.coded
        self._every = settings.versions.full_every
        self._codec = delta_codec(settings.versions)
        self._residual: Residual | None = None
        self._full = 0
        self._full_size = self._size_of_full(weights)
        self._deltas: list[int] = []  # sizes of the versions after the full one
        self._sample = 0
        self._before: tuple[Tensor, Residual | None] = (self.weights, None)
        self._made: tuple[int, bool, int] = (0, True, self._full_size)

    def encode(self, number: int, weights: Tensor) -> Tensor:
        """What readers will have of version `number`, written over its `weights`."""
        self._before = (self.weights, self._residual)
        parent, self.weights = self.weights, weights
        before, after = self._layout.parts(parent)[0], self._layout.parts(weights)[0]
        is_sample = not self._sample or number % _SAMPLED_EVERY == 0
        if not self._coded and not is_sample:
            is_full = number - self._full >= self._every
            self._made = number, is_full, self._full_size if is_full else self._sample
            return weights
        target = after if self._coded else after.clone()
        encoding = begin_delta(number, self._full, self._every, before, target, self._residual, self._codec)
        if encoding is None:
            if self._coded:
                add_residual(after, self._residual)
            self._residual = None
            self._made = number, True, self._size_of_full(weights)
            return weights
        encoding.work()
        parts, residual = encoding.finish()
        size = sum(map(len, parts)) + 4 * self._layout.buffer_elements
        self._residual = residual if self._coded else None
        self._made, self._sample = (number, False, size), size
        return weights

    def commit(self) -> None:
        """The version that was encoded last is published."""
        number, is_full, size = self._made
        if is_full:
            self._full, self._full_size = number, size
            self._deltas.clear()
        else:
            self._deltas.append(size)

    def take_back(self) -> None:
        """The version that was encoded last is not published."""
        self.weights, self._residual = self._before

    def download_size(self, held: int | None, newest: int) -> int:
        """Bytes from version `held` to the `newest`: of the deltas between, or of a full version and what follows."""
        if held is None or held < self._full:
            return self._full_size + sum(self._deltas)
        return sum(self._deltas[held - self._full : newest - self._full])

    def _size_of_full(self, weights: Tensor) -> int:
        return sum(map(len, encode(weights, _FULL)))

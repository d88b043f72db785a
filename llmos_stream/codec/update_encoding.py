"""How one client's updates become payloads, one after the other, live or simulated."""

import hashlib
from collections.abc import Iterator

from torch import Generator, Tensor

from llmos_stream.codec.feedback import ErrorFeedback
from llmos_stream.codec.layout import is_finite
from llmos_stream.codec.payload import SLICE, encode, with_buffers
from llmos_stream.codec.table import spec_of
from llmos_stream.config import CodecSettings


class UpdateEncoding:
    """The codec of client `client_id` for a layout of so many `parameters`, and what earlier updates left out."""

    def __init__(self, settings: CodecSettings, client_id: str, parameters: int) -> None:
        self._client_id = client_id
        self._parameters = parameters
        self.feedback: ErrorFeedback | None = None
        self.use(settings)

    def use(self, settings: CodecSettings) -> None:
        """Write the next updates by this codec. What earlier ones left out goes into the next, whatever its codec."""
        self.settings = settings
        self.spec = spec_of(settings)
        if self.feedback is None and has_residual(settings):
            self.feedback = ErrorFeedback(self._parameters)

    def frames(
        self, delta: Tensor, buffers: Tensor, sequence: int, elements: tuple[int, int] | None = None
    ) -> Iterator[bytes]:
        """The payload of the update of this number, frame by frame. `delta` may be written over.

        It is of all parameters, or of some `elements` (begin, end) alone.

        Raises:
            ValueError: The delta holds NaN or infinity.
        """
        generator, level = _generator(self._client_id, sequence), self.settings.zstd_level
        if self.feedback is not None:
            decay = self.settings.feedback_decay
            frames = self.feedback.frames(
                delta, self.spec, level=level, generator=generator, decay=decay, elements=elements
            )
        else:
            delta = delta if elements is None else delta[slice(*elements)]
            frames = _if_finite(delta, encode(delta, self.spec, level=level, generator=generator))
        return with_buffers(frames, buffers)


def has_residual(settings: CodecSettings) -> bool:
    """Whether a client remembers what its updates leave out: a vector as long as the model."""
    return settings.name != "float32" and settings.error_feedback


def _if_finite(delta: Tensor, frames: Iterator[bytes]) -> Iterator[bytes]:
    """The frames of `delta`; each slice is looked at before its frame is made. Raises ValueError."""
    for begin in range(0, delta.numel(), SLICE):
        if not is_finite(delta[begin : begin + SLICE]):
            raise ValueError("the delta holds NaN or infinity")
        yield next(frames)


def _generator(client_id: str, sequence: int) -> Generator:
    """Randomness for stochastic rounding, the same whenever the same update is encoded."""
    seed = hashlib.blake2b(f"{client_id}\0{sequence}".encode(), digest_size=8).digest()
    return Generator("cpu").manual_seed(int.from_bytes(seed, "little") >> 1)

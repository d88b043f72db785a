"""From a delta to a durable update, and back from the disk after a restart. Knows nothing of the broker."""

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from llmos_stream.codec import SLICE, ErrorFeedback, Layout, encode, is_finite, spec_of, with_buffers
from llmos_stream.config import CodecSettings
from llmos_stream.errors import StateError, TaskError
from llmos_stream.roles.client.state import ClientState, Payload, Unsent
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import UpdateHead
from llmos_stream.wire import pack_prelude
from llmos_stream.wire.head import MAX_METRICS


class Outbox:
    """Encodes one client's updates; holds the one that was not acknowledged. Every method works for a while.

    A caller that was cancelled may leave one at work in its thread: they take turns.
    """

    def __init__(
        self, codec: CodecSettings, client_id: str, layout: Layout, state: ClientState, clock: Clock = SYSTEM_CLOCK
    ) -> None:
        self._client_id = client_id
        self._layout = layout
        self._state = state
        self._clock = clock
        self._feedback: ErrorFeedback | None = None
        self._set(codec)

    def _set(self, codec: CodecSettings) -> None:
        self._settings = codec
        self._codec = spec_of(codec)
        self._level = codec.zstd_level
        if self._feedback is None and codec.name != "float32" and codec.error_feedback:
            self._feedback = ErrorFeedback(self._layout.parameters)

    def use(self, codec: CodecSettings) -> None:
        """Write the next updates by this codec. What earlier ones left out goes into the next, whatever its codec."""
        with self._state.mutex:
            if codec != self._settings:
                self._set(codec)

    def open(self) -> None:
        """Raise StateError when what the state holds is damaged or of another model."""
        with self._state.mutex:
            unsent = self._state.unsent()
            if unsent is not None and unsent.head.layout_digest != self._layout.digest:
                raise StateError(
                    f"what client {self._client_id} has not sent yet is of another model; "
                    "give this one a client.state_dir of its own"
                )
            self._take_residual()

    def unsent(self) -> Unsent | None:
        with self._state.mutex:
            return self._state.unsent()

    def put(self, trained: Trained) -> tuple[Unsent, bool]:
        """The next update to send, durable, and whether it is that of `trained`.

        It is not while an earlier one is unsent: then nothing is done with `trained`. Raises TaskError
        when the delta is not finite, StateError when it cannot be written.
        """
        with self._state.mutex:
            waiting = self._state.unsent()
            return (waiting, False) if waiting is not None else (self._spool(trained), True)

    def settle(self, sequence: int) -> None:
        """The update was acknowledged, or is given up."""
        with self._state.mutex:
            self._state.settle(sequence)

    def _spool(self, trained: Trained) -> Unsent:
        begun = self._clock.monotonic()
        sequence = self._state.take_sequence()
        metrics = _with_norm(trained)  # before the delta is written over
        payload = self._write(trained.delta, trained.buffers, sequence)
        head = UpdateHead(
            client_id=self._client_id,
            sequence=sequence,
            base_version=trained.base_version,
            num_examples=trained.num_examples,
            layout_digest=self._layout.digest,
            codec=self._codec,
            payload_size=payload.size,
            payload_digest=payload.digest,
            metrics=metrics,
        )
        encode_seconds = self._clock.monotonic() - begun
        update = Unsent(head, pack_prelude(head), payload, trained.seconds, encode_seconds)
        if self._feedback is None:
            self._state.spool(update, None)
        else:
            self._state.spool(update, self._feedback.pending)
            self._feedback.commit()
        return update

    def _write(self, delta: Tensor, buffers: Tensor | None, sequence: int) -> Payload:
        """Encode slice by slice, each written before the next is made."""
        values = torch.empty(0, dtype=torch.float32, device="cpu") if buffers is None else buffers
        generator = _generator(self._client_id, sequence)
        if self._feedback is None:
            frames = _if_finite(delta, encode(delta, self._codec, level=self._level, generator=generator))
        else:
            self._take_residual()
            frames = self._feedback.frames(delta, self._codec, level=self._level, generator=generator)
        try:
            return self._state.write(sequence, with_buffers(frames, values))
        except ValueError:
            if not is_finite(delta):  # error feedback looks itself, so that good deltas are looked at once
                raise TaskError("training made weights that are not finite; lower client.lr") from None
            raise

    def _take_residual(self) -> None:
        """Go on from what the state holds: an update that could not be spooled has left nothing."""
        if self._feedback is not None:
            self._feedback.rollback()
            if (residual := self._state.residual()) is not self._feedback.residual:
                self._feedback.residual = residual


def _with_norm(trained: Trained) -> Mapping[str, float]:
    """Its metrics, and the L2 norm of its delta where there is room for that."""
    norm = float(torch.linalg.vector_norm(trained.delta))
    if len(trained.metrics) >= MAX_METRICS or not math.isfinite(norm):
        return trained.metrics
    return {"norm": norm, **trained.metrics}


def _if_finite(delta: Tensor, frames: Iterator[bytes]) -> Iterator[bytes]:
    """The frames of `delta`; each slice is looked at before its frame is made. Raises ValueError."""
    for begin in range(0, delta.numel(), SLICE):
        if not is_finite(delta[begin : begin + SLICE]):
            raise ValueError("the delta holds NaN or infinity")
        yield next(frames)


def _generator(client_id: str, sequence: int) -> torch.Generator:
    """Randomness for stochastic rounding, the same whenever the same update is encoded."""
    seed = hashlib.blake2b(f"{client_id}\0{sequence}".encode(), digest_size=8).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(seed, "little") >> 1)

"""From a delta to a durable update, and back from the disk after a restart. Knows nothing of the broker."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from llmos_stream.codec import Layout, UpdateEncoding, is_finite
from llmos_stream.config import CodecSettings
from llmos_stream.errors import StateError, TaskError
from llmos_stream.roles.client.carry import Cut
from llmos_stream.roles.client.state import ClientState, Payload, Unsent
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.training.shared_model import Trained
from llmos_stream.types import UpdateHead
from llmos_stream.wire import pack_prelude
from llmos_stream.wire.head import MAX_METRICS

_NOT_FINITE = "training made weights that are not finite; lower client.lr"


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
        self._encoding = UpdateEncoding(codec, client_id, layout.parameters)

    def use(self, codec: CodecSettings) -> None:
        """Write the next updates by this codec. What earlier ones left out goes into the next, whatever its codec."""
        with self._state.mutex:
            if codec != self._encoding.settings:
                self._encoding.use(codec)

    def open(self) -> None:
        """Raise StateError when what the state holds is damaged or of another model."""
        with self._state.mutex:
            unsent = self._state.unsent()
            if unsent is not None and unsent.head.layout_digest != self._layout.digest_of(unsent.head.range):
                raise StateError(
                    f"what client {self._client_id} has not sent yet is of another model; "
                    "give this one a client.state_dir of its own"
                )
            self._take_residual()
            self._state.restore(self._layout.parameters)

    def unsent(self) -> Unsent | None:
        with self._state.mutex:
            return self._state.unsent()

    def start(self, weights: Tensor, cut: Cut) -> Tensor:
        """See `Carry.start`. A residual of another run is forgotten, too."""
        with self._state.mutex:
            if cut.number is not None:
                self._state.drop_residual_after(cut.number)
            return self._state.carry.start(weights, cut)

    def put(self, trained: Trained) -> tuple[Unsent, bool]:
        """The next update to send, durable, and whether it is that of `trained`, as far as that is its turn.

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
        carry, buffers = self._state.carry, trained.buffers
        fragment, elements, carried = carry.turn(), None, None
        if fragment is not None:
            elements = fragment.begin, fragment.begin + fragment.parameters
            carry.add_to(trained.delta)
            if not is_finite(trained.delta):  # of what is not sent now, nobody would look at it
                raise TaskError(_NOT_FINITE)
            carried = carry.after(fragment, trained.delta, trained.base_version)
            buffers = buffers if fragment.buffers else None
        metrics = _with_norm(trained, elements)  # before the delta is written over
        payload = self._write(trained.delta, buffers, sequence, elements)
        head = UpdateHead(
            client_id=self._client_id,
            sequence=sequence,
            base_version=trained.base_version,
            num_examples=trained.num_examples,
            layout_digest=self._layout.digest if fragment is None else fragment.digest,
            codec=self._encoding.spec,
            payload_size=payload.size,
            payload_digest=payload.digest,
            metrics=metrics,
            range=None if fragment is None else fragment.range,
        )
        encode_seconds = self._clock.monotonic() - begun
        update = Unsent(head, pack_prelude(head), payload, trained.seconds, encode_seconds)
        if (feedback := self._encoding.feedback) is None:
            self._state.spool(update, None, carried)
        else:
            self._state.spool(update, feedback.pending, carried)
            feedback.commit()
        return update

    def _write(self, delta: Tensor, buffers: Tensor | None, sequence: int, elements: tuple[int, int] | None) -> Payload:
        """Encode slice by slice, each written before the next is made."""
        values = torch.empty(0, dtype=torch.float32, device="cpu") if buffers is None else buffers
        self._take_residual()
        try:
            return self._state.write(sequence, self._encoding.frames(delta, values, sequence, elements))
        except ValueError:
            if not is_finite(delta):  # error feedback looks itself, so that good deltas are looked at once
                raise TaskError(_NOT_FINITE) from None
            raise

    def _take_residual(self) -> None:
        """Go on from what the state holds: an update that could not be spooled has left nothing."""
        if (feedback := self._encoding.feedback) is not None:
            feedback.rollback()
            if (residual := self._state.residual()) is not feedback.residual:
                feedback.residual = residual


def _with_norm(trained: Trained, elements: tuple[int, int] | None) -> Mapping[str, float]:
    """Its metrics, and the L2 norm of what is sent of its delta where there is room for that."""
    begin, end = elements or (0, trained.delta.numel())
    norm = float(torch.linalg.vector_norm(trained.delta[begin:end]))
    if len(trained.metrics) >= MAX_METRICS or not math.isfinite(norm):
        return trained.metrics
    return {"norm": norm, **trained.metrics}

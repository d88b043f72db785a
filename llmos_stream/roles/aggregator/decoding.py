"""From a whole message to an update that can be folded, by all threads at once.

Between validating and folding, an update is held in quantized form (see `codec.quantized_form`): a quarter of the
model's float32 size for int8 and int4, half of it for float16. One that would take more room than is allowed, and one
in float32, is not held at all: it is decoded once to validate it, and again, slice by slice, while it is folded.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from llmos_stream.codec import Decoding, QuantizedForm, prepare_quantized, prepare_visit, quantized_bytes, slices
from llmos_stream.core import Update
from llmos_stream.core.flat import norm_of
from llmos_stream.core.fragments import fragment_of
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.log.admission import head_of
from llmos_stream.log.updates import WORTH_QUANTIZED, QuantizedDelta, RowNorms
from llmos_stream.runtime import Offload, run_all
from llmos_stream.types import CodecId, CodecSpec, Fragment, Part, UpdateHead
from llmos_stream.wire import Message, payload_digest

_BOUNDED = frozenset({CodecId.INT8, CodecId.INT4, CodecId.TOPK, CodecId.TOPK2})
"""Codecs whose scales or kept values tell at once how long a delta can be at most."""


class Decoder:
    """Decodes the updates of the `fragments` of one model, one at a time. A model that is not cut has one.

    At most one decoded update is live: fold it before asking for the next, which is written over it, unless it is kept
    (see `core.Delta.keep`). `room_bytes` is how much memory it may take. `clips` says that norms will be asked for, so
    that they are taken while the values are in cache.
    """

    def __init__(
        self, fragments: Sequence[Fragment], offload: Offload, room_bytes: int, *, clips: bool = False
    ) -> None:
        self._fragments = fragments
        self._offload = offload
        self._room_bytes = room_bytes
        self._clips = clips
        # Pages of fresh memory cost more than decoding into them does.
        self._room = torch.empty(0, dtype=torch.uint8, device="cpu")
        self._kept = False

    async def decode(self, message: Message) -> Update:
        """The update in `message`: its digest verified, and all of it decoded once.

        Raises Rejected: UNSUPPORTED, WRONG_DIGEST, WRONG_LAYOUT for a range that moves nowhere, or as `codec.decode`
        does. Cancelled, it leaves threads at work: do not use this decoder again.
        """
        self._kept = False
        head = head_of(UpdateHead, message)
        found = message.digest_on_the_way or await self._offload.run(payload_digest, message.parts)
        if found != head.payload_digest:
            raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
        fragment = fragment_of(self._fragments, head.range)
        numel, buffers = fragment.parameters, fragment.buffer_elements
        size = quantized_bytes(head.codec, numel)
        rows = RowNorms(numel)
        values = torch.empty(buffers, dtype=torch.float32, device="cpu")
        delta: _Borrowed | _Read
        if size <= min(self._room_bytes, WORTH_QUANTIZED * numel):
            if self._room.numel() < size:
                self._room = torch.empty(
                    0, dtype=torch.uint8, device="cpu"
                )  # the old one goes before the new one comes
                self._room = torch.empty(size, dtype=torch.uint8, device="cpu")
            visit = rows.add if self._clips or head.codec.id not in _BOUNDED else None
            decoding, quantized = prepare_quantized(message.parts, head.codec, numel, self._room, visit, values)
            delta = _Borrowed(quantized, None if visit is None else rows, self._leave_room)
        else:
            decoding = prepare_visit(message.parts, head.codec, numel, rows.add, values)
            delta = _Read(message.parts, head.codec, rows, buffers, self._leave_parts)
        await self._decode(decoding)
        return Update(head, message.partition, message.first_offset, delta, values)

    def close(self, message: Message) -> None:
        """Give back the payload of the message that was decoded last, unless its update is kept and needs it."""
        if not self._kept:
            message.parts.close()

    def _leave_room(self) -> None:
        self._room = torch.empty(0, dtype=torch.uint8, device="cpu")

    def _leave_parts(self) -> None:
        self._kept = True  # what lies there is given back with the last reference

    async def _decode(self, decoding: Decoding) -> None:
        workers = min(self._offload.workers, decoding.slices)
        await run_all(*(self._offload.run(decoding.work) for _ in range(workers)))
        decoding.finish()


class _Borrowed(QuantizedDelta):
    """One that lies in the decoder's room."""

    def __init__(self, quantized: QuantizedForm, rows: RowNorms | None, leave: Callable[[], None]) -> None:
        super().__init__(quantized, rows)
        self._leave = leave

    def keep(self) -> QuantizedDelta:
        self._leave()
        return QuantizedDelta(self._quantized, self._rows)


class _Read:
    """A delta that is decoded anew whenever it is walked through. See `core.Delta` for the methods.

    Kept, it keeps its payload, which lies in a file where memory is short (see `storage.spool`).
    """

    def __init__(
        self, parts: Iterable[Part], codec: CodecSpec, rows: RowNorms, buffers: int, leave: Callable[[], None]
    ) -> None:
        self._parts = parts
        self._codec = codec
        self._rows = rows
        self._buffers = buffers
        self._leave = leave

    @property
    def numel(self) -> int:
        return self._rows.numel

    def norm(self) -> float:
        return norm_of(self._rows.in_order(), self.slices)

    def bound(self) -> float:
        return math.inf

    def keep(self) -> "_Read":
        self._leave()
        return self

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        try:
            yield from slices(self._parts, self._codec, self.numel, factor, self._buffers)
        except Rejected as error:
            raise StateError(f"a payload is no longer what it was when it was verified: {error}") from None

"""From a whole message to an update that can be folded, by all threads at once.

Between validating and folding, an update is held in quantized form (see `codec.quantized_form`): a quarter of the
model's float32 size for int8 and int4, half of it for float16. One that would take more room than is allowed, and one
in float32, is not held at all: it is decoded once to validate it, and again, slice by slice, while it is folded.
"""

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from llmos_stream.codec import (
    Decoding,
    QuantizedForm,
    Workspace,
    prepare_quantized,
    prepare_visit,
    quantized_bytes,
    slices,
)
from llmos_stream.core import Update
from llmos_stream.core.flat import norm_of, row_norms
from llmos_stream.errors import Reason, Rejected, StateError
from llmos_stream.log.updates import update_head
from llmos_stream.runtime import Offload, run_all
from llmos_stream.types import CodecId, CodecSpec, Part
from llmos_stream.wire import Message

_BOUNDED = frozenset({CodecId.INT8, CodecId.INT4, CodecId.TOPK})
"""Codecs whose scales or kept values tell at once how long a delta can be at most."""
_WORTH_HOLDING = 3
"""Bytes an element. To write float32's four and to read them again costs about as much as to decode them again."""


class Decoder:
    """Decodes the updates of one model of `numel` elements, one at a time.

    At most one decoded update is live: fold it before asking for the next, which is written over it. `room_bytes` is
    how much memory it may take. `clips` says that norms will be asked for, so that they are taken while the values
    are in cache.
    """

    def __init__(self, numel: int, offload: Offload, room_bytes: int, *, clips: bool = False) -> None:
        self._numel = numel
        self._offload = offload
        self._room_bytes = room_bytes
        self._clips = clips
        # Pages of fresh memory cost more than decoding into them does.
        self._room = torch.empty(0, dtype=torch.uint8)

    async def decode(self, message: Message) -> Update:
        """The update in `message`: its digest verified, and all of it decoded once.

        Raises Rejected: UNSUPPORTED, WRONG_DIGEST, or as `codec.decode` does. Cancelled, it leaves threads at work: do
        not use this decoder again.
        """
        head = update_head(message)
        found = message.digest_on_the_way or await self._offload.run(_digest, message)
        if found != head.payload_digest:
            raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
        size = quantized_bytes(head.codec, self._numel)
        rows = _Rows(self._numel)
        delta: _Held | _Read
        if size <= min(self._room_bytes, _WORTH_HOLDING * self._numel):
            if self._room.numel() < size:
                self._room = torch.empty(0, dtype=torch.uint8)  # the old one goes before the new one comes
                self._room = torch.empty(size, dtype=torch.uint8)
            visit = rows.add if self._clips or head.codec.id not in _BOUNDED else None
            decoding, quantized = prepare_quantized(message.parts, head.codec, self._numel, self._room, visit)
            delta = _Held(quantized, None if visit is None else rows)
        else:
            decoding = prepare_visit(message.parts, head.codec, self._numel, rows.add)
            delta = _Read(message.parts, head.codec, rows)
        await self._decode(decoding)
        return Update(head=head, partition=message.partition, offset=message.first_offset, delta=delta)

    async def _decode(self, decoding: Decoding) -> None:
        workers = min(self._offload.workers, decoding.slices)
        await run_all(*(self._offload.run(decoding.work) for _ in range(workers)))
        decoding.finish()


class _Rows:
    """Norms of the rows of a flat vector of `numel` elements, whose slices come in any order."""

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self._rows: dict[int, list[float]] = {}

    def add(self, begin: int, values: Tensor) -> None:
        self._rows[begin] = row_norms(values)

    def in_order(self) -> Iterator[float]:
        for begin in sorted(self._rows):
            yield from self._rows[begin]


class _Held:
    """A delta in its quantized form. See `core.Delta` for the methods."""

    def __init__(self, quantized: QuantizedForm, rows: _Rows | None) -> None:
        self._quantized = quantized
        self._rows = rows
        self._workspace = Workspace()

    @property
    def numel(self) -> int:
        return self._quantized.numel

    def norm(self) -> float:
        rows = self._rows.in_order() if self._rows else (row for part in self.slices() for row in row_norms(part))
        return norm_of(rows, self.slices)

    def bound(self) -> float:
        return self._quantized.largest * math.sqrt(self.numel)

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        return self._quantized.values(self._workspace, factor)


class _Read:
    """A delta that is decoded anew whenever it is walked through. See `core.Delta` for the methods."""

    def __init__(self, parts: Iterable[Part], codec: CodecSpec, rows: _Rows) -> None:
        self._parts = parts
        self._codec = codec
        self._rows = rows

    @property
    def numel(self) -> int:
        return self._rows.numel

    def norm(self) -> float:
        return norm_of(self._rows.in_order(), self.slices)

    def bound(self) -> float:
        return math.inf

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        try:
            yield from slices(self._parts, self._codec, self.numel, factor)
        except Rejected as error:
            raise StateError(f"a payload is no longer what it was when it was verified: {error}") from None


def _digest(message: Message) -> bytes:
    return message.payload_digest

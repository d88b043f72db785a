"""Updates between messages and what can be folded.

A decoded update is held in quantized form (see `codec.quantized_form`), where that is small: a quarter of the
model's float32 size for int8 and int4, half of it for float16.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from llmos_stream.codec import QuantizedForm, Workspace, decode, prepare_quantized, quantized_bytes
from llmos_stream.core import Update, Whole
from llmos_stream.core.flat import norm_of, row_norms
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.admission import head_of
from llmos_stream.types import UpdateHead
from llmos_stream.wire import Message

WORTH_QUANTIZED = 3
"""Bytes an element. To write float32's four and to read them again costs about as much as to decode them again."""


class RowNorms:
    """Norms of the rows of a flat vector of `numel` elements, whose slices come in any order."""

    def __init__(self, numel: int) -> None:
        self.numel = numel
        self._rows: dict[int, list[float]] = {}

    def add(self, begin: int, values: Tensor) -> None:
        self._rows[begin] = row_norms(values)

    def in_order(self) -> Iterator[float]:
        for begin in sorted(self._rows):
            yield from self._rows[begin]


class QuantizedDelta:
    """A delta in quantized form. See `core.Delta` for the methods. `rows` are its norms, where they are known."""

    def __init__(self, quantized: QuantizedForm, rows: RowNorms | None = None) -> None:
        self._quantized = quantized
        self._rows = rows

    @property
    def numel(self) -> int:
        return self._quantized.numel

    def norm(self) -> float:
        rows = self._rows.in_order() if self._rows else (row for part in self.slices() for row in row_norms(part))
        return norm_of(rows, self.slices)

    def bound(self) -> float:
        return self._quantized.largest * math.sqrt(self.numel)

    def slices(self, factor: float | None = None) -> Iterator[Tensor]:
        return self._quantized.values(Workspace(), factor)

    def keep(self) -> "QuantizedDelta":
        return self


def decode_update(message: Message, numel: int, buffers: int = 0) -> Update:
    """Verify the payload's digest and decode it, into memory that is the update's own.

    It has `numel` elements of parameters, and the values of `buffers` more.

    Raises Rejected.
    """
    head = head_of(UpdateHead, message)
    if message.payload_digest != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, "the payload does not match its digest")
    values = torch.empty(buffers, dtype=torch.float32, device="cpu")
    delta: QuantizedDelta | Whole
    size = quantized_bytes(head.codec, numel)
    if size <= WORTH_QUANTIZED * numel:
        room = torch.empty(size, dtype=torch.uint8, device="cpu")
        decoding, quantized = prepare_quantized(message.parts, head.codec, numel, room, buffers=values)
        decoding.work()
        decoding.finish()
        delta = QuantizedDelta(quantized)
    else:
        delta = Whole(decode(message.parts, head.codec, numel, buffers=values), owned=True)
    return Update(head, message.partition, message.first_offset, delta, values)

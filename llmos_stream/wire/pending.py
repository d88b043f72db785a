"""One message on its way: the chunks that came so far, and what can be said of them."""

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Part
from llmos_stream.wire.chunks import Chunk
from llmos_stream.wire.frame import (
    MAX_PRELUDE_BYTES,
    MAX_SIGNATURE_BYTES,
    OPENING_BYTES,
    Prelude,
    prelude_needs,
    read_prelude,
)
from llmos_stream.wire.outcomes import Message, Refusal
from llmos_stream.wire.store import Store

if TYPE_CHECKING:
    from hashlib import _Hash

HEAD_BYTES_KEPT = 1024
Admit = Callable[[Prelude], object]
"""Judges a message by its prelude, before its head is parsed and its payload kept. Raises Rejected to refuse it."""
RECORD_COST = 512
"""Bytes that keeping one more record costs besides its value; without it, tiny chunks would be free."""

_PRELUDE_ROOM = MAX_PRELUDE_BYTES + MAX_SIGNATURE_BYTES


@dataclass(slots=True)
class Pending:
    """A message begun and not finished. `touched` is when its last chunk came, `held` the bytes it counts for.

    A chunk is counted (`append`), judged (`is_whole`) and then kept (`keep`), so that what is refused is never
    stored. Once the head is known only the payload is.
    """

    key: bytes | None
    partition: int
    first_offset: int
    count: int
    touched: float
    store: Callable[[], Store]
    hashes: bool = False
    held: int = 0
    chunks: int = 0
    _received: int = 0
    _needed: int = OPENING_BYTES
    _beginning: bytes = b""
    _prelude: Prelude | None = None
    _parts: Store | None = None  # the payload's; before the head is known, all there is
    _digest: "_Hash | None" = None

    def append(self, chunk: Chunk, now: float) -> bool:
        """Count the next chunk; False where it is a repeat. Raises Rejected for a gap and for a changed count."""
        if chunk.count != self.count:
            raise Rejected(Reason.MALFORMED, f"a message of {self.count} chunks has one of {chunk.count}")
        if chunk.index < self.chunks:
            return False
        if chunk.index > self.chunks:
            detail = f"chunk {chunk.index} of {chunk.count} came where {self.chunks} was due"
            raise Rejected(Reason.MISSING_CHUNK, detail)
        self.chunks += 1
        self._received += len(chunk.body)
        self._beginning += chunk.body[: HEAD_BYTES_KEPT - len(self._beginning)]
        self.held += len(chunk.body) + RECORD_COST
        self.touched = now
        return True

    def is_whole(self, body: memoryview, admit: Admit, max_bytes: int) -> bool:
        """Judge what is there with `body`, the newest. Raises Rejected as soon as it cannot become a message."""
        missing = self.count - self.chunks
        prelude = self._read_prelude(body, admit, max_bytes)
        if prelude is None:
            if missing == 0:
                raise Rejected(Reason.TRUNCATED, f"the message ends after {self._received} bytes, inside its prelude")
            return False
        left = prelude.size + prelude.head.payload_size - self._received
        if left < missing:
            raise Rejected(Reason.MALFORMED, f"the head leaves {left} bytes for {missing} more chunks")
        if left and not missing:
            raise Rejected(Reason.TRUNCATED, f"{left} bytes of a payload of {prelude.head.payload_size} are not there")
        return not missing

    def keep(self, body: memoryview) -> None:
        """Store the newest chunk. Raises what the store does."""
        if self._parts is None:
            self._parts = self.store()
        if self._prelude is not None:
            # The prelude was read with the first chunk that made it whole: none before holds any of the payload.
            body = body[max(0, len(body) - (self._received - self._prelude.size)) :]
            if self._digest is not None:
                self._digest.update(body)
        if body:
            self._parts.append(body)

    def message(self, last_offset: int) -> Message:
        """The message, once it is whole. It owns the parts from then on."""
        if self._prelude is None or self._parts is None:
            raise ValueError("the message is not whole")
        parts, self._parts = self._parts, None
        return Message(
            head=self._prelude.head,
            signature=self._prelude.signature,
            parts=parts,
            partition=self.partition,
            first_offset=self.first_offset,
            last_offset=last_offset,
            key=self.key,
            digest_on_the_way=None if self._digest is None else self._digest.digest(),
            head_digest=self._prelude.digest,
        )

    def refusal(self, reason: Reason, detail: str) -> Refusal:
        """The refusal of the message as far as it came."""
        head = self._prelude.parsed if self._prelude else None
        return Refusal(reason, detail, head, self._beginning, self.key, self.partition, self.first_offset)

    def close(self) -> None:
        """Give back what was stored, unless a message has it."""
        if self._parts is not None:
            self._parts.close()
            self._parts = None

    def _read_prelude(self, body: memoryview, admit: Admit, max_bytes: int) -> Prelude | None:
        # Chunks may be as small as a byte: `_needed` keeps the joins to a handful all the same.
        if self._prelude is not None or self._received < self._needed:
            return self._prelude
        data: Part = body if self._parts is None else _joined([*self._parts, body], _PRELUDE_ROOM)
        self._prelude = prelude = read_prelude(data)
        if prelude is not None:
            prelude.key = self.key
        if prelude is None:
            self._needed = prelude_needs(data)
            return None
        self.close()  # it held nothing but the prelude
        if self.hashes:
            self._digest = hashlib.sha256()
        try:
            admit(prelude)
            size = prelude.head.payload_size
        finally:
            prelude.let_go()
        if prelude.size + size > max_bytes:
            raise Rejected(Reason.TOO_LARGE, f"a payload of {size} bytes; at most {max_bytes} are held")
        return prelude


def _joined(parts: Iterable[Part], most: int) -> bytes:
    """The first `most` bytes of `parts`."""
    pieces, left = [], most
    for part in parts:
        pieces.append(part[:left])
        left -= len(pieces[-1])
        if not left:
            break
    return b"".join(pieces)

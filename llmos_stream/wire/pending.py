"""One message on its way: the chunks that came so far, and what can be said of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Head, Part
from llmos_stream.wire.chunks import Chunk
from llmos_stream.wire.frame import OPENING_BYTES, Prelude, prelude_needs, unpack_prelude
from llmos_stream.wire.outcomes import Message, Refusal

HEAD_BYTES_KEPT = 1024
RECORD_COST = 512
"""Bytes that keeping one more record costs besides its value; without it, tiny chunks would be free."""


@dataclass(slots=True)
class Pending:
    """A message begun and not finished. `touched` is when its last chunk came, `held` the memory it counts for."""

    key: bytes | None
    partition: int
    first_offset: int
    count: int
    touched: float
    held: int = 0
    parts: list[memoryview] = field(default_factory=list)
    _received: int = 0
    _needed: int = OPENING_BYTES
    _prelude: Prelude | None = None

    def append(self, chunk: Chunk, now: float) -> bool:
        """Keep the next chunk; False where it is a repeat. Raises Rejected for a gap and for a changed count."""
        due = len(self.parts)
        if chunk.count != self.count:
            raise Rejected(Reason.MALFORMED, f"a message of {self.count} chunks has one of {chunk.count}")
        if chunk.index < due:
            return False
        if chunk.index > due:
            raise Rejected(Reason.MISSING_CHUNK, f"chunk {chunk.index} of {chunk.count} came where {due} was due")
        self.parts.append(chunk.body)
        self._received += len(chunk.body)
        self.held += len(chunk.body) + RECORD_COST
        self.touched = now
        return True

    def is_whole(self, admit: Callable[[Head], None], max_bytes: int) -> bool:
        """Judge what is there. Raises Rejected as soon as it cannot become a message that is taken."""
        missing = self.count - len(self.parts)
        prelude = self._read_prelude(admit, max_bytes)
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

    def message(self, last_offset: int) -> Message:
        """The message, once it is whole."""
        if self._prelude is None:
            raise ValueError("the message is not whole")
        return Message(
            head=self._prelude.head,
            signature=self._prelude.signature,
            prelude_size=self._prelude.size,
            parts=self._payload(self._prelude.size),
            partition=self.partition,
            first_offset=self.first_offset,
            last_offset=last_offset,
            key=self.key,
        )

    def refusal(self, reason: Reason, detail: str) -> Refusal:
        """The refusal of the message as far as it came."""
        head = self._prelude.head if self._prelude else None
        return Refusal(reason, detail, head, self._beginning(), self.key, self.partition, self.first_offset)

    def _read_prelude(self, admit: Callable[[Head], None], max_bytes: int) -> Prelude | None:
        # Chunks may be as small as a byte: `_needed` keeps the joins to a handful all the same.
        if self._prelude is not None or self._received < self._needed:
            return self._prelude
        data: Part = self.parts[0] if len(self.parts) == 1 else b"".join(self.parts)
        self._prelude = unpack_prelude(data)
        if self._prelude is None:
            self._needed = prelude_needs(data)
            return None
        head = self._prelude.head
        if self._prelude.size + head.payload_size > max_bytes:
            raise Rejected(Reason.TOO_LARGE, f"a payload of {head.payload_size} bytes; at most {max_bytes} are held")
        admit(head)
        return self._prelude

    def _payload(self, prelude_size: int) -> list[memoryview]:
        """The parts without the prelude, which may fill several of them."""
        views, skip = [], prelude_size
        for part in self.parts:
            if skip < len(part):
                views.append(part[skip:])
            skip = max(0, skip - len(part))
        return views

    def _beginning(self) -> bytes:
        found = b""
        for part in self.parts:
            found += part[: HEAD_BYTES_KEPT - len(found)]
            if len(found) == HEAD_BYTES_KEPT:
                break
        return found

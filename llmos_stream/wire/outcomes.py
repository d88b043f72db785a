"""What becomes of the records that are read: a message, or a refusal."""

from dataclasses import dataclass, field

from llmos_stream.errors import Reason
from llmos_stream.types import Head
from llmos_stream.wire.frame import payload_digest
from llmos_stream.wire.store import Parts


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message. `parts` are its payload alone, in as many parts as came: they add up to `head.payload_size`.

    Offsets are of its first and last record.
    """

    head: Head
    signature: bytes | None
    parts: Parts
    partition: int
    first_offset: int
    last_offset: int
    key: bytes | None
    digest_on_the_way: bytes | None = field(default=None, repr=False)
    head_digest: bytes = field(default=b"", repr=False)
    """See `Prelude.digest`."""

    @property
    def payload_digest(self) -> bytes:
        """SHA-256 of the payload that came, to hold against `head.payload_digest`.

        Costs nothing where it was computed while the chunks came (see `Assembler`), else a walk through the parts.
        """
        if self.digest_on_the_way is not None:
            return self.digest_on_the_way
        return payload_digest(self.parts)


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message that was refused, or a record that belongs to none.

    `offset` is that of the message's first record, or of the record itself where the message's
    beginning was never seen. `head_bytes` is how the message begins (the record, where it is no chunk),
    at most 1024 bytes. It is empty where a chunk came without the beginning of its message, which is
    also what a reader sees that starts in the middle of the log.
    """

    reason: Reason
    detail: str
    head: Head | None
    head_bytes: bytes
    key: bytes | None
    partition: int
    offset: int


Outcome = Message | Refusal

"""What `<f>.quarantine` holds: a record for each update that was refused. The aggregator writes, operators read.

key         how the refused record was keyed, which is its sender's client id if it is honest: at most 256 bytes. It is
            the client id in the head where that could be read and the update was refused later.
value       a JSON object:
reason      str: one of `errors.Reason`
detail      str: what was wrong, for people; at most 1000 characters
topic       str: where the refused update is
partition   int
offset      int: of the first record of its message, or of the record where the message's beginning was never seen
time_ms     int: when it was refused, in milliseconds since the epoch, by the aggregator's clock
head        null where it could not be read, else as `describe(head, full=False)` gives it
head_bytes  str, base64: how the message begins, at most 1024 bytes; empty where its beginning was never seen, or the
            update was refused once its payload had been decoded

A payload never gets here, and what was sent decides nothing about the size of a record: one that Kafka would not take
would be refused again after each restart.
"""

from base64 import b64encode

import orjson

from llmos_stream.wire.describe import describe
from llmos_stream.wire.outcomes import Refusal

DETAIL_CHARACTERS = 1000
_KEY_BYTES = 256


def dump_quarantined(refusal: Refusal, topic: str, time_ms: int) -> tuple[bytes | None, bytes]:
    """The key and the value of a record."""
    entry = {
        "reason": refusal.reason,
        "detail": refusal.detail[:DETAIL_CHARACTERS],
        "topic": topic,
        "partition": refusal.partition,
        "offset": refusal.offset,
        "time_ms": time_ms,
        "head": None if refusal.head is None else describe(refusal.head, full=False),
        "head_bytes": b64encode(refusal.head_bytes).decode(),
    }
    return (refusal.key or b"")[:_KEY_BYTES] or None, orjson.dumps(entry)

"""Records to bytes and back. `frame` and `chunks` open with the specification of what is on the wire."""

from llmos_stream.wire.assembler import Assembler
from llmos_stream.wire.chunks import Chunk, message_id, read_chunk, split
from llmos_stream.wire.describe import describe
from llmos_stream.wire.events import dump_event, load_event
from llmos_stream.wire.frame import (
    MAX_PRELUDE_BYTES,
    MAX_SIGNATURE_BYTES,
    Prelude,
    head_digest,
    pack_prelude,
    payload_digest,
    prelude_needs,
    unpack_prelude,
)
from llmos_stream.wire.outcomes import Message, Outcome, Refusal
from llmos_stream.wire.pending import RECORD_COST, Admit
from llmos_stream.wire.store import MemoryStore, Parts, Store

__all__ = [
    "MAX_PRELUDE_BYTES",
    "MAX_SIGNATURE_BYTES",
    "RECORD_COST",
    "Admit",
    "Assembler",
    "Chunk",
    "MemoryStore",
    "Message",
    "Outcome",
    "Parts",
    "Prelude",
    "Refusal",
    "Store",
    "describe",
    "dump_event",
    "head_digest",
    "load_event",
    "message_id",
    "pack_prelude",
    "payload_digest",
    "prelude_needs",
    "read_chunk",
    "split",
    "unpack_prelude",
]

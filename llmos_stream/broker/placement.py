"""Where a record goes and whether it fits: rules that both implementations share."""

from collections.abc import Sequence

from aiokafka.partitioner import murmur2

from llmos_stream.errors import RecordTooLarge

MAX_RECORD_BYTES = 1_048_588
"""Kafka's default `message.max.bytes`: one record with its batch around it."""

_BATCH_HEADER = 61
_MOST_RECORD_HEADER = 1 + 5 + 10 + 5 + 5 + 5 + 5  # attributes; lengths of record, key, value; time, offset, headers
_MOST_HEADER_LENGTHS = 10


def partition_of(key: bytes, partitions: int) -> int:
    """The partition that Kafka's default partitioner gives a key."""
    hashed: int = murmur2(key)
    return (hashed & 0x7FFFFFFF) % partitions


def record_bytes(key: bytes | None, value: bytes | None, headers: Sequence[tuple[str, bytes]] = ()) -> int:
    """Upper bound on a record's size in a batch of its own (record format v2, where lengths are varints)."""
    size = _BATCH_HEADER + _MOST_RECORD_HEADER + len(key or b"") + len(value or b"")
    return size + sum(_MOST_HEADER_LENGTHS + len(name.encode()) + len(content) for name, content in headers)


def check_record(
    topic: str,
    key: bytes | None,
    value: bytes | None,
    headers: Sequence[tuple[str, bytes]] = (),
    limit: int = MAX_RECORD_BYTES,
) -> None:
    """Raise RecordTooLarge when the topic would not take it, ValueError for a tombstone without a key."""
    if key is None and value is None:
        raise ValueError("a tombstone needs a key")
    size = record_bytes(key, value, headers)
    if size > limit:
        raise RecordTooLarge(
            f"a record of {size} bytes exceeds the {limit} bytes that {topic} takes; "
            "lower wire.chunk_bytes (LLMOS_WIRE__CHUNK_BYTES)"
        )

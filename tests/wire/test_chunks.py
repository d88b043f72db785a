"""Cutting a message into records: the header's bytes, sizes, and one copy of the payload."""

import hashlib
import tracemalloc
from array import array
from collections.abc import Iterator

import msgpack  # type: ignore[import-untyped]
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Part
from llmos_stream.wire import message_id, read_chunk, split
from llmos_stream.wire.chunks import CHUNK_OVERHEAD
from tests.wire.heads import PROPERTY

ID = bytes(range(16))
HEADER = "94 a2 4c43 c4 10 000102030405060708090a0b0c0d0e0f"


def test_golden_bytes() -> None:
    first, second = split(b"pre", [b"load"], 4, ID, 4)
    assert first == bytes.fromhex(f"{HEADER} ce 00000000 ce 00000002") + b"prel"
    assert second == bytes.fromhex(f"{HEADER} ce 00000001 ce 00000002") + b"oad"


def test_golden_message_id() -> None:
    assert message_id("c-1", 7, 2) == hashlib.blake2b(b"7 2 c-1", digest_size=16).digest()
    assert message_id("c-1", 7).hex() == "ec5b317d3af9f519dbaf4aa7b8606159"


def test_message_ids_differ_in_each_argument() -> None:
    arguments = [("a", 1, 0), ("a", 1, 1), ("a", 2, 0), ("b", 1, 0), ("1 a", 1, 0), ("0 a", 1, 1), ("a", 11, 0)]
    assert len({message_id(*each) for each in arguments}) == len(arguments)
    assert all(len(message_id(*each)) == 16 for each in arguments)


def test_a_header_is_one_msgpack_array() -> None:
    value = next(split(b"prelude", [], 0, ID, 3))
    assert msgpack.unpackb(value[:CHUNK_OVERHEAD]) == ["LC", ID, 0, 3]


@PROPERTY
@given(
    prelude=st.binary(min_size=1, max_size=200),
    parts=st.lists(st.binary(max_size=100), max_size=10),
    chunk_bytes=st.integers(1, 300),
)
def test_records_add_up_to_the_message(prelude: bytes, parts: list[bytes], chunk_bytes: int) -> None:
    message = prelude + b"".join(parts)
    values = list(split(prelude, parts, len(message) - len(prelude), ID, chunk_bytes))
    chunks = [read_chunk(value) for value in values]
    assert b"".join(chunk.body for chunk in chunks) == message
    assert [chunk.index for chunk in chunks] == list(range(len(chunks)))
    assert {(chunk.message_id, chunk.count) for chunk in chunks} == {(ID, len(chunks))}
    assert all(len(chunk.body) == chunk_bytes for chunk in chunks[:-1])
    assert all(len(value) <= CHUNK_OVERHEAD + chunk_bytes for value in values)


@pytest.mark.parametrize("chunk_bytes", [1, 1024, 960 * 1024, 1_000_000])
def test_the_size_bound_is_reached_and_not_passed(chunk_bytes: int) -> None:
    values = split(b"p" * chunk_bytes, [], 0, b"\xff" * 16, chunk_bytes)
    assert [len(value) for value in values] == [CHUNK_OVERHEAD + chunk_bytes]


def test_parts_may_be_views_of_any_item() -> None:
    floats = array("f", [1.0, 2.0, 3.0])
    no_rows = np.zeros((0, 3), np.float32).data
    parts: list[Part] = [memoryview(floats), b"", no_rows, memoryview(b"xy")]
    values = list(split(b"p", parts, 14, ID, 5))
    assert b"".join(value[CHUNK_OVERHEAD:] for value in values) == b"p" + floats.tobytes() + b"xy"


@pytest.mark.parametrize("parts", [[], [b"123"], [b"1", b"2", b"3"], [b"12345"], [b"1234", b"5"], [b"1234", b"", b"5"]])
@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 5, 100])
def test_parts_that_do_not_add_up_never_make_a_whole_message(parts: list[bytes], chunk_bytes: int) -> None:
    given_out: list[bytes] = []
    values = split(b"p", parts, 4, ID, chunk_bytes)
    with pytest.raises(ValueError, match="message of 5"):
        given_out.extend(values)
    assert len(given_out) < -(-5 // chunk_bytes)


@pytest.mark.parametrize(
    ("prelude", "size", "identifier", "chunk_bytes"),
    [(b"", 4, ID, 10), (b"p", -1, ID, 10), (b"p", 4, ID[:15], 10), (b"p", 4, ID, 0), (b"p", 2**32, ID, 1)],
)
def test_arguments_that_make_no_message(prelude: bytes, size: int, identifier: bytes, chunk_bytes: int) -> None:
    with pytest.raises(ValueError, match=r"split needs|the limit"):
        split(prelude, [], size, identifier, chunk_bytes)


def test_the_payload_streams_through() -> None:
    """Memory stays at a few chunks while 64 MiB go through."""
    part, count, chunk_bytes = bytes(1 << 20), 64, 256 * 1024

    def parts() -> Iterator[bytes]:
        for _ in range(count):
            yield part

    tracemalloc.start()
    try:
        taken = sum(len(value) for value in split(b"p", parts(), count << 20, ID, chunk_bytes))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken > count << 20
    assert peak < 4 * chunk_bytes


def test_a_huge_claimed_payload_costs_nothing() -> None:
    values = split(b"p", [b"12"], 2**40, ID, 1 << 20)
    with pytest.raises(ValueError, match="before the message"):
        next(values)


def test_read_chunk_does_not_copy() -> None:
    value = next(split(b"prelude", [], 0, ID, 100))
    chunk = read_chunk(value)
    assert chunk.body.obj is value
    assert bytes(read_chunk(memoryview(value)).body) == b"prelude"


GOOD = bytes.fromhex(f"{HEADER} ce 00000000 ce 00000001") + b"p"


@pytest.mark.parametrize(
    "value",
    [
        b"",
        GOOD[:-1],
        GOOD[:10],
        b"\x93" + GOOD[1:],
        GOOD.replace(b"LC", b"LD"),
        GOOD[:22] + b"\xcd" + GOOD[23:],
        GOOD[:27] + b"\xd2" + GOOD[28:],
        GOOD[:28] + b"\x00\x00\x00\x00p",
        GOOD[:23] + b"\x00\x00\x00\x01" + GOOD[27:],
        GOOD[:23] + b"\xff\xff\xff\xff" + GOOD[27:],
        b'{"kind":"client_joined","role":"client"}',
    ],
)
def test_what_is_no_chunk(value: bytes) -> None:
    assert bytes(read_chunk(GOOD).body) == b"p"
    for part in (value, memoryview(value)):
        with pytest.raises(Rejected) as caught:
            read_chunk(part)
        assert caught.value.reason is Reason.MALFORMED

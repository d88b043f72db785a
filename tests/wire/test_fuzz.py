"""Whatever the bytes, there are only outcomes; and memory stays within the limit."""

import random
import tracemalloc

import msgpack  # type: ignore[import-untyped]
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.errors import Rejected
from llmos_stream.wire import (
    Message,
    Refusal,
    describe,
    message_id,
    pack_prelude,
    split,
    unpack_prelude,
)
from llmos_stream.wire.fields import read_fields
from llmos_stream.wire.frame import read_prelude
from tests.wire.heads import CONTRIBUTION, PROPERTY, UPDATE, VERSION, version
from tests.wire.records import Topic, payload_of, records, topic

PRELUDES = [pack_prelude(UPDATE), pack_prelude(UPDATE, b"s" * 40), pack_prelude(VERSION)]


def survives(data: bytes) -> None:
    """The prelude is read, refused or needs more: nothing else is raised."""
    said: object
    try:
        prelude = unpack_prelude(data)
        said = prelude is None or describe(prelude.head, signature=prelude.signature)
    except Rejected as error:
        said = 0 < len(error.detail) < 1000
    assert said


def seeded(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311 the same damage in every run


def flipped(data: bytes, chance: random.Random) -> bytes:
    """The bytes with a few of them changed, left out or put in."""
    damaged = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(damaged))
        how = chance.randrange(4)
        if how == 0:
            damaged[at] ^= 1 << chance.randrange(8)
        elif how == 1:
            damaged[at] = chance.choice(
                b"\x00\x7f\x80\x8f\x90\x9f\xc0\xc1\xc4\xc6\xc7\xc9\xcb\xcf\xd3\xd4\xd9\xdb\xdd\xdf\xff"
            )
        elif how == 2:
            del damaged[at : at + chance.randint(1, 8)]
            damaged = damaged or bytearray(1)
        else:
            damaged[at:at] = chance.randbytes(chance.randint(1, 8))
    return bytes(damaged)


@PROPERTY
@given(st.binary(max_size=200))
def test_random_heads(data: bytes) -> None:
    for kind in (b"\x01", b"\x02"):
        survives(b"\x95\xa5LLMOS\x01" + kind + b"\xc6" + len(data).to_bytes(4, "big") + data + b"\xc0")
    survives(data)


@pytest.mark.parametrize("prelude", PRELUDES)
def test_damaged_preludes(prelude: bytes) -> None:
    chance = seeded(1)
    for _ in range(4000):
        survives(flipped(prelude, chance))


@pytest.mark.parametrize("prelude", PRELUDES)
def test_damaged_heads_in_a_sound_frame(prelude: bytes) -> None:
    """The lengths of the frame are right, so the damage reaches the head's own checks."""
    chance = seeded(2)
    head = msgpack.unpackb(prelude)[3]
    for _ in range(4000):
        damaged = flipped(head, chance)
        survives(prelude[:10] + len(damaged).to_bytes(4, "big") + damaged + b"\xc0")


def pushed(reader: Topic, value: bytes, chance: random.Random) -> int:
    """Messages that came out; what came out is an outcome, and nothing was raised."""
    outcomes = reader.push([value], chance.randrange(2))
    for outcome in outcomes:
        if isinstance(outcome, Message):
            assert sum(len(part) for part in outcome.parts) == outcome.head.payload_size
        else:
            assert isinstance(outcome, Refusal)
            assert len(outcome.head_bytes) <= 1024
            assert len(outcome.detail) < 1000
    return len([outcome for outcome in outcomes if isinstance(outcome, Message)])


@pytest.mark.parametrize("chunk_bytes", [40, 500])
def test_damaged_records(chunk_bytes: int) -> None:
    """Damaged, lost, repeated and random records of many messages: the sound ones still come out."""
    chance = seeded(3)
    reader = topic(max_pending_bytes=40_000, max_pending_messages=10, max_idle_seconds=300)
    messages = 0
    for sequence in range(600):
        for value in records(payload_of(chance.randrange(200)), chunk_bytes, f"c-{sequence % 7}", sequence):
            reader.now += 1
            sent = value
            if chance.random() < 0.08:
                sent = chance.choice([flipped(value, chance), chance.randbytes(chance.randrange(60)), value[:-1]])
            messages += pushed(reader, sent, chance) if chance.random() > 0.02 else 0
            reader.assembler.expire(reader.now)
            assert reader.assembler.pending_bytes <= 40_000
            assert reader.assembler.pending_messages <= 10
    assert messages > 0


@PROPERTY
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(1, 5), st.binary(max_size=40)), max_size=30)
)
def test_chunks_with_any_header_and_body(chunks: list[tuple[int, int, int, bytes]]) -> None:
    reader, chance = topic(), seeded(4)
    for sender, index, count, body in chunks:
        header = b"\x94\xa2LC\xc4\x10" + message_id(str(sender), 0) + b"\xce" + index.to_bytes(4, "big")
        pushed(reader, header + b"\xce" + count.to_bytes(4, "big") + body, chance)


def test_nested_claims_of_length_allocate_little() -> None:
    """Each level claims an array of the most items that are taken, as deep as msgpack goes."""
    nest = b"\x81\xa4rule" + b"\xdc\x00\x40" * 500
    flat = b"\x81\xa4rule\xdd\xff\xff\xff\xff"
    listed = b"\x81\xa8manifest\xdd\xff\xff\xff\xff"
    tracemalloc.start()
    try:
        for head in (nest, flat, listed):
            with pytest.raises(Rejected):
                read_fields(memoryview(head), {"rule", "manifest"}, {"manifest"})
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20


def test_what_pending_messages_hold_is_within_what_is_counted() -> None:
    """The real memory of pending records, tiny ones above all, stays within the limit they are counted against."""
    limit = 1 << 20
    reader = topic(max_pending_bytes=limit)
    tracemalloc.start()
    try:
        for sequence in range(50):
            for value in records(payload_of(200), 1, "c", sequence)[:-1]:
                reader.push([bytes(value)])
                assert reader.assembler.pending_bytes <= limit
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reader.assembler.pending_bytes > limit // 2
    assert held < limit + (1 << 16)


def test_a_large_prelude_in_tiny_chunks_is_joined_a_few_times_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time to take a prelude grows with its size, not with its square."""
    prelude = pack_prelude(version(manifest=(CONTRIBUTION,) * 200))
    read = 0

    def counting(data: bytes) -> object:
        nonlocal read
        read += len(data)
        return read_prelude(data)

    monkeypatch.setattr("llmos_stream.wire.pending.read_prelude", counting)
    reader = topic(max_pending_bytes=1 << 30)
    outcomes = reader.push(list(split(prelude, [], 0, bytes(16), 1)))
    assert [type(outcome) for outcome in outcomes] == [Message]
    assert len(prelude) <= read <= 4 * len(prelude)


def test_remembered_refusals_are_bounded() -> None:
    reader = topic()
    later = records(payload_of(100), 100)[1]

    def outcomes_of(number: int) -> int:
        return len(reader.push([later[:6] + number.to_bytes(16, "big") + later[22:]]))

    tracemalloc.start()
    try:
        assert [outcomes_of(number) for number in range(40_000)] == [1] * 40_000
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 8 << 20
    assert [outcomes_of(number) for number in range(39_000, 40_000)] == [0] * 1000  # still known
    assert outcomes_of(0) == 1  # forgotten

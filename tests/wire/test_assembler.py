"""What becomes of records: messages, each kind of refusal, resends, repeats and limits."""

import hashlib
from dataclasses import replace
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Head, UpdateHead
from llmos_stream.wire import (
    RECORD_COST,
    Assembler,
    MemoryStore,
    Message,
    Prelude,
    Refusal,
    message_id,
    pack_prelude,
    split,
)
from llmos_stream.wire.chunks import CHUNK_OVERHEAD
from tests.wire import heads
from tests.wire.heads import PROPERTY, UPDATE, update
from tests.wire.records import admit_all, only_message, only_refusal, payload_of, records, topic

ID = message_id("c-1", 0)


def chunk(index: int, count: int, body: bytes) -> bytes:
    """One record with any header."""
    head = next(split(b"-", [], 0, ID, 1))[:22]
    return head + b"\xce" + index.to_bytes(4, "big") + b"\xce" + count.to_bytes(4, "big") + body


def frame(payload: bytes, payload_size: int) -> bytes:
    """A message whose payload need not have the size that its head names."""
    return pack_prelude(update(payload_size=payload_size)) + payload


def test_a_message_of_one_record() -> None:
    reader = topic()
    (value,) = records(b"hello", chunk_bytes=1000)
    message = only_message(reader.push([value], partition=3))
    assert (message.partition, message.first_offset, message.last_offset, message.key) == (3, 0, 0, b"k")
    assert message.head == update(client_id="c-1", sequence=0)
    assert b"".join(message.parts) == b"hello"
    assert (reader.assembler.pending_messages, reader.assembler.pending_bytes) == (0, 0)


@PROPERTY
@given(
    heads.updates | heads.versions,
    heads.signatures,
    st.binary(max_size=300),
    st.integers(1, 700),
    st.booleans(),
)
def test_any_message_comes_out_as_it_went_in(
    head: Head, signature: bytes | None, payload: bytes, chunk_bytes: int, as_views: bool
) -> None:
    """Also where the prelude spans many chunks."""
    head = replace(head, payload_size=len(payload))
    prelude = pack_prelude(head, signature)
    values = list(split(prelude, [payload], len(payload), ID, chunk_bytes))
    reader = topic()
    assert reader.push(values[:-1]) == []
    message = only_message(reader.push([memoryview(values[-1]) if as_views else values[-1]]))
    assert (message.head, message.signature) == (head, signature)
    assert b"".join(message.parts) == payload
    assert all(len(part) for part in message.parts)
    assert (message.first_offset, message.last_offset) == (0, len(values) - 1)
    assert (reader.assembler.pending_messages, reader.assembler.pending_bytes) == (0, 0)


def test_parts_are_views_of_the_records() -> None:
    reader = topic()
    values = records(payload_of(1000), chunk_bytes=300)
    message = only_message(reader.push(values))
    owners = [memoryview(part).obj for part in message.parts]
    assert [any(owner is value for value in values) for owner in owners] == [True] * len(owners)
    assert len(owners) >= 3


@pytest.mark.parametrize("hashes", [False, True])
@pytest.mark.parametrize("chunk_bytes", [30, 300, 5000])
def test_the_digest_of_what_came(hashes: bool, chunk_bytes: int) -> None:
    """Also where the first bytes of the payload share a chunk with the last of the prelude."""
    for size in (0, 1, 1000):
        message = only_message(topic(hashes=hashes).push(records(payload_of(size), chunk_bytes)))
        assert (message.digest_on_the_way is not None) == hashes
        assert message.payload_digest == hashlib.sha256(payload_of(size)).digest()


class _Store(MemoryStore):
    """Counts the stores, and those that are closed."""

    opened: ClassVar[list["_Store"]] = []
    closed: ClassVar[list["_Store"]] = []

    def __init__(self) -> None:
        super().__init__()
        self.opened.append(self)

    def close(self) -> None:
        self.closed.append(self)


@pytest.mark.parametrize("chunk_bytes", [50, 300])
def test_each_store_is_closed_or_goes_with_a_message(chunk_bytes: int) -> None:
    _Store.opened.clear()
    _Store.closed.clear()
    reader = topic(store=_Store, max_idle_seconds=10)
    values = {name: records(payload_of(1000), chunk_bytes, name) for name in "abcd"}
    message = only_message(reader.push(values["a"]))
    reader.push(values["b"][:3])
    reader.push(values["b"][:3])  # begun anew
    reader.push(values["c"][:1] + values["c"][2:])  # a gap
    reader.push(values["d"][:2], partition=1)
    reader.assembler.forget(1)
    reader.assembler.expire(10.0)
    assert reader.assembler.pending_messages == 0
    assert len(_Store.closed) == len(_Store.opened) - 1
    (kept,) = (store for store in _Store.opened if not any(store is closed for closed in _Store.closed))
    assert kept is message.parts


def test_what_is_refused_from_its_head_is_never_stored() -> None:
    def admit(_: Prelude) -> None:
        raise Rejected(Reason.WRONG_LAYOUT, "another model")

    _Store.opened.clear()
    only_refusal(topic(admit, store=_Store).push(records(payload_of(1000), 400)))
    assert _Store.opened == []


def test_what_a_store_raises_is_no_refusal() -> None:
    class Full(MemoryStore):
        def append(self, part: memoryview, /) -> None:
            raise ZeroDivisionError

    reader = topic(store=Full)
    with pytest.raises(ZeroDivisionError):
        reader.push(records(payload_of(1000), 400))
    assert reader.assembler.low_water(0) == 0  # what was lost must be read again


def test_a_payload_of_no_bytes() -> None:
    assert list(only_message(topic().push(records(b""))).parts) == []


def test_the_head_is_admitted_once_before_the_payload_is_there() -> None:
    seen: list[Head] = []
    reader = topic(lambda prelude: seen.append(prelude.head))
    values = records(payload_of(1000), chunk_bytes=400)
    assert reader.push(values[:1]) == []
    assert seen == [update(client_id="c-1", sequence=0, payload_size=1000)]
    only_message(reader.push(values[1:]))
    assert len(seen) == 1


def test_what_admit_refuses_is_not_kept() -> None:
    def admit(prelude: Prelude) -> None:
        assert isinstance(prelude.head, UpdateHead)
        raise Rejected(Reason.WRONG_LAYOUT, "another model")

    reader = topic(admit)
    values = records(payload_of(1000), chunk_bytes=400)
    refusal = only_refusal(reader.push(values))
    assert (refusal.reason, refusal.detail, refusal.offset, refusal.key) == (
        Reason.WRONG_LAYOUT,
        "another model",
        0,
        b"k",
    )
    assert isinstance(refusal.head, UpdateHead)
    assert refusal.head_bytes == values[0][CHUNK_OVERHEAD:]
    assert (reader.assembler.pending_messages, reader.assembler.pending_bytes) == (0, 0)


def test_admit_is_given_what_a_signature_covers_before_the_head_is_parsed() -> None:
    prelude = pack_prelude(update(payload_size=0), b"signature")
    broken = prelude[:14] + b"\xc1" + prelude[15:]  # 0xC1 is no msgpack
    seen: list[tuple[bytes, bytes | None]] = []

    def admit(raw: Prelude) -> None:
        seen.append((bytes(raw.signed), raw.signature))
        raise Rejected(Reason.UNSUPPORTED, "nobody has signed this")

    refusal = only_refusal(topic(admit).push(list(split(broken, [], 0, bytes(16), 1000))))
    assert (refusal.detail, refusal.head) == ("nobody has signed this", None)
    assert seen == [(broken[: -len(b"signature") - 3], b"signature")]


def test_an_error_in_admit_is_not_bad_input() -> None:
    def admit(_: Prelude) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        topic(admit).push(records())


def test_not_a_chunk() -> None:
    reader = topic()
    value = b"{" * 3000
    refusal = only_refusal(reader.push([value], partition=2))
    assert refusal == Refusal(Reason.MALFORMED, refusal.detail, None, b"{" * 1024, b"k", 2, 0)
    only_refusal(reader.push([b""]))


def test_not_a_frame() -> None:
    refusal = only_refusal(topic().push([chunk(0, 2, b"x" * 3000), chunk(1, 2, b"y")]))
    assert (refusal.reason, refusal.head, refusal.head_bytes) == (Reason.MALFORMED, None, b"x" * 1024)


def test_a_newer_format() -> None:
    newer = frame(b"", 0).replace(b"LLMOS\x01", b"LLMOS\x02")
    assert only_refusal(topic().push([chunk(0, 1, newer)])).reason is Reason.UNSUPPORTED


def test_a_malformed_head() -> None:
    damaged = frame(b"", 0).replace(b"client", b"CLIENT")
    assert only_refusal(topic().push([chunk(0, 1, damaged)])).reason is Reason.MALFORMED


def test_a_gap_refuses_once_and_the_rest_is_passed_over() -> None:
    reader = topic()
    values = records(payload_of(1000), chunk_bytes=100)
    refusal = only_refusal(reader.push(values[:5] + values[6:]))
    assert (refusal.reason, refusal.offset) == (Reason.MISSING_CHUNK, 0)
    assert refusal.head is not None
    assert refusal.head_bytes == b"".join(value[CHUNK_OVERHEAD:] for value in values[:5])
    assert reader.push(values[1:]) == []
    assert reader.assembler.pending_bytes == 0


def test_a_gap_before_the_head_is_there() -> None:
    values = records(chunk_bytes=50)
    refusal = only_refusal(topic().push([values[0], values[2]]))
    assert (refusal.reason, refusal.head) == (Reason.MISSING_CHUNK, None)


def test_a_message_without_its_beginning_refuses_once() -> None:
    reader = topic()
    values = records(payload_of(1000), chunk_bytes=100)
    refusal = only_refusal(reader.push(values[3:], partition=1))
    assert (refusal.reason, refusal.offset, refusal.partition) == (Reason.MISSING_CHUNK, 0, 1)
    assert (refusal.head, refusal.head_bytes) == (None, b"")


@pytest.mark.parametrize("cut", [0, 1, 4, 8])
def test_a_resend_of_a_refused_message_is_taken(cut: int) -> None:
    reader = topic()
    values = records(payload_of(1000), chunk_bytes=100)
    only_refusal(reader.push(values[:cut] + values[cut + 1 :]))
    message = only_message(reader.push(values))
    assert message.first_offset == len(values) - 1


def test_a_resend_in_the_middle_begins_anew() -> None:
    reader = topic()
    old, new = (records(bytes([fill]) * 1000, chunk_bytes=100) for fill in (1, 2))
    assert reader.push(old[:6]) == []
    message = only_message(reader.push(new))
    assert b"".join(message.parts) == b"\x02" * 1000
    assert message.first_offset == 6
    assert reader.assembler.pending_bytes == 0


def test_a_resend_of_a_finished_message_comes_out_again() -> None:
    """The core drops it by its identity, and counts it; here it is a message like any other."""
    reader = topic()
    for values in (records(payload_of(500), chunk_bytes=100), records(b"one", chunk_bytes=1000)):
        assert only_message(reader.push(values)).head == only_message(reader.push(values)).head


def test_repeated_records_are_passed_over() -> None:
    reader = topic()
    values = records(payload_of(500), chunk_bytes=100)
    twice = [value for value in values for _ in range(2)]
    message = only_message(reader.push(twice))
    assert b"".join(message.parts) == payload_of(500)
    assert reader.push(values[1:]) == []


def test_repeats_do_not_keep_a_message_alive() -> None:
    reader = topic(max_idle_seconds=10)
    values = records(payload_of(500), chunk_bytes=100)
    reader.push(values[:3])
    reader.now = 9.0
    reader.push(values[1:3])
    assert only_refusal(reader.assembler.expire(10.0)).reason is Reason.INCOMPLETE


def test_a_count_that_changes() -> None:
    reader = topic()
    message = frame(b"12345", 5)
    refusal = only_refusal(reader.push([chunk(0, 3, message), chunk(1, 4, b"x"), chunk(2, 3, b"x")]))
    assert refusal.reason is Reason.MALFORMED


def test_a_count_that_changes_in_a_repeat() -> None:
    refusal = only_refusal(topic().push([chunk(0, 3, frame(b"1", 3)), chunk(1, 3, b"2"), chunk(1, 4, b"2")]))
    assert refusal.reason is Reason.MALFORMED


def test_an_index_outside_the_count_leaves_other_messages_alone() -> None:
    reader = topic()
    outcomes = reader.push([chunk(0, 2, frame(b"1", 2)), chunk(2, 2, b"2"), chunk(5, 2, b"2"), chunk(1, 2, b"2")])
    assert [type(outcome) for outcome in outcomes] == [Refusal, Refusal, Message]


@pytest.mark.parametrize("payload", [b"", b"1234"])
def test_fewer_bytes_than_the_head_names(payload: bytes) -> None:
    refusal = only_refusal(topic().push([chunk(0, 1, frame(payload, 5))]))
    assert refusal.reason is Reason.TRUNCATED
    assert refusal.head == update(payload_size=5)


def test_fewer_bytes_over_several_chunks() -> None:
    refusal = only_refusal(topic().push([chunk(0, 2, frame(b"12", 5)), chunk(1, 2, b"34")]))
    assert refusal.reason is Reason.TRUNCATED


@pytest.mark.parametrize("size", [1, 10, 14, 100])
def test_all_chunks_and_no_whole_prelude(size: int) -> None:
    prelude = frame(b"", 0)
    for values in ([chunk(0, 1, prelude[:size])], [chunk(0, 2, prelude[:size]), chunk(1, 2, prelude[size:150])]):
        refusal = only_refusal(topic().push(values))
        assert (refusal.reason, refusal.head) == (Reason.TRUNCATED, None)


def test_more_bytes_than_the_head_names() -> None:
    assert only_refusal(topic().push([chunk(0, 1, frame(b"123456", 5))])).reason is Reason.MALFORMED
    outcomes = topic().push([chunk(0, 2, frame(b"123", 5)), chunk(1, 2, b"456")])
    assert only_refusal(outcomes).reason is Reason.MALFORMED


def test_more_chunks_than_the_head_leaves_bytes_for() -> None:
    """Known at once, before the chunks come."""
    reader = topic()
    assert only_refusal(reader.push([chunk(0, 4, frame(b"123", 5))])).reason is Reason.MALFORMED
    assert reader.push([chunk(0, 3, frame(b"123", 5))]) == []


def test_idle_messages_expire_the_longest_idle_first() -> None:
    reader = topic(max_idle_seconds=10)
    first, second = records(payload_of(500), 100, "a"), records(payload_of(500), 100, "b")
    reader.push(first[:2])
    reader.now = 5.0
    reader.push(second[:2])
    assert reader.assembler.expire(9.9) == []
    refusal = only_refusal(reader.assembler.expire(10.0))
    assert (refusal.reason, refusal.offset, refusal.key) == (Reason.INCOMPLETE, 0, b"k")
    reader.now = 14.0
    reader.push(second[2:3])
    assert reader.assembler.expire(23.9) == []
    assert only_refusal(reader.assembler.expire(24.0)).offset == 2
    assert reader.assembler.expire(1e9) == []
    assert reader.push(first[2:] + second[3:]) == []
    assert reader.assembler.low_water(0) is None


def test_too_many_messages_drop_the_longest_idle() -> None:
    reader = topic(max_pending_messages=2)
    a, b, c = (records(payload_of(500), 100, sender) for sender in "abc")
    reader.push([a[0], b[0], a[1]])
    refusal = only_refusal(reader.push(c[:1]))
    assert (refusal.reason, refusal.offset) == (Reason.INCOMPLETE, 1)
    assert [type(outcome) for outcome in reader.push(a[2:] + c[1:])] == [Message, Message]


def test_too_many_bytes_drop_the_longest_idle() -> None:
    reader = topic(max_pending_bytes=5 * (1000 + RECORD_COST))
    a, b = (records(payload_of(4000), 1000, sender) for sender in "ab")
    assert reader.push([a[0], b[0], a[1], b[1], a[2]]) == []
    assert reader.assembler.pending_bytes == 5 * (1000 + RECORD_COST)
    refusal = only_refusal(reader.push(a[3:4]))
    assert (refusal.reason, refusal.offset) == (Reason.INCOMPLETE, 1)
    assert reader.assembler.pending_bytes == 4 * (1000 + RECORD_COST)
    only_message(reader.push(a[4:] + b[2:]))


def test_a_message_whose_chunks_are_too_many_drops_itself_last() -> None:
    """Its bytes would fit, but not with the cost of so many records."""
    reader = topic(max_pending_bytes=4000)
    reader.push(records(payload_of(500), 400, "other")[:1])
    first, second = reader.push(records(payload_of(500), 10))
    assert isinstance(first, Refusal)
    assert isinstance(second, Refusal)
    assert (first.reason, first.offset, second.reason, second.offset) == (Reason.INCOMPLETE, 0, Reason.INCOMPLETE, 1)
    assert (reader.assembler.pending_messages, reader.assembler.pending_bytes) == (0, 0)


def test_a_finished_message_drops_nobody() -> None:
    reader = topic(max_pending_bytes=3500)
    waiting, passing = records(payload_of(2000), 1000, "a"), records(payload_of(3000), 4000, "b")
    assert reader.push(waiting[:1]) == []
    only_message(reader.push(passing))
    only_message(reader.push(waiting[1:]))


def test_a_message_too_large_to_be_held_is_refused_from_its_head() -> None:
    reader = topic(max_pending_bytes=5000)
    other = records(payload_of(500), 100, "other")
    reader.push(other[:1])
    refusal = only_refusal(reader.push([chunk(0, 9, frame(b"1", 5001))]))
    assert (refusal.reason, refusal.head) == (Reason.TOO_LARGE, update(payload_size=5001))
    only_message(reader.push(other[1:]))


def test_huge_claims_hold_only_what_came() -> None:
    reader = topic(max_pending_bytes=2**63)
    message = frame(b"12345", 2**62)
    assert reader.push([chunk(0, 2**32 - 1, message)]) == []
    assert reader.assembler.pending_bytes == len(message) + RECORD_COST


def test_low_water_is_the_oldest_pending_message_of_the_partition() -> None:
    reader = topic()
    a, b, c = (records(payload_of(500), 100, sender) for sender in "abc")
    assert reader.assembler.low_water(0) is None
    reader.push(a[:1])
    reader.push(b[:1])
    reader.push(c[:1], partition=1)
    assert (reader.assembler.low_water(0), reader.assembler.low_water(1), reader.assembler.low_water(2)) == (0, 2, None)
    reader.push(a[1:])
    assert reader.assembler.low_water(0) == 1
    reader.push(b[1:])
    assert reader.assembler.low_water(0) is None


def test_the_same_id_on_two_partitions_is_two_messages() -> None:
    reader = topic()
    values = records(payload_of(500), 100)
    for value in values[:-1]:
        assert reader.push([value], partition=0) + reader.push([value], partition=1) == []
    assert only_message(reader.push(values[-1:], partition=1)).first_offset == 1
    assert only_message(reader.push(values[-1:], partition=0)).first_offset == 0


def test_forget_drops_a_partition_in_silence() -> None:
    reader = topic()
    a, b, c = (records(payload_of(500), 100, sender) for sender in "abc")
    reader.push(a[:2])
    reader.push(b[:2], partition=1)
    only_refusal(reader.push(c[1:2]))
    reader.assembler.forget(0)
    assert (reader.assembler.low_water(0), reader.assembler.low_water(1)) == (None, 2)
    assert reader.assembler.expire(0.0) == []
    assert only_refusal(reader.push(c[1:2])).reason is Reason.MISSING_CHUNK  # as if never seen
    only_message(reader.push(a))
    only_message(reader.push(b[2:], partition=1))
    assert reader.assembler.pending_bytes == 0


@pytest.mark.parametrize("limits", [(0, 1, 1.0), (1, 0, 1.0), (1, 1, 0.0)])
def test_limits_are_above_zero(limits: tuple[int, int, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Assembler(admit_all, *limits)


def test_one_small_chunk_at_a_time_reads_the_head_once_it_is_there() -> None:
    seen: list[Head] = []
    reader = topic(lambda prelude: seen.append(prelude.head))
    values = list(split(pack_prelude(UPDATE, b"s" * 300), [b"hello"], 5, ID, 1))
    assert reader.push(values[:-6]) == []
    assert seen == []
    assert reader.push(values[-6:-5]) == []
    assert seen == [UPDATE]
    assert only_message(reader.push(values[-5:])).signature == b"s" * 300

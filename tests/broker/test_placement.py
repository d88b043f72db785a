import pytest
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.broker.placement import MAX_RECORD_BYTES, check_record, partition_of, record_bytes
from llmos_stream.errors import RecordTooLarge

KEYS = st.none() | st.binary(max_size=300)
VALUES = st.binary(max_size=5000)
HEADERS = st.lists(st.tuples(st.text(max_size=20), st.binary(max_size=200)), max_size=5)


@pytest.mark.parametrize(
    ("key", "signed"),
    [
        (b"21", -973932308),
        (b"foobar", -790332482),
        (b"a-little-bit-long-string", -985981536),
        (b"a-little-bit-longer-string", -1486304829),
        (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
        (b"abc", 479470107),
    ],
)
def test_keys_hash_to_what_kafkas_own_tests_expect(key: bytes, signed: int) -> None:
    assert partition_of(key, 1 << 31) == signed % (1 << 31)


def test_keys_spread_over_fixed_partitions() -> None:
    assert [partition_of(f"client-{number}".encode(), 6) for number in range(10)] == [2, 0, 1, 5, 3, 4, 0, 1, 0, 1]


@given(KEYS, VALUES, HEADERS)
def test_a_record_is_never_larger_than_estimated(
    key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]
) -> None:
    builder = DefaultRecordBatchBuilder(
        2, 0, is_transactional=1, producer_id=1, producer_epoch=1, base_sequence=1, batch_size=1 << 20
    )
    builder.append(0, 1_700_000_000_000, key, value, headers)
    real = len(builder.build())
    assert real <= record_bytes(key, value, headers) <= real + 50 + 10 * len(headers)


def test_what_is_too_large_or_empty_is_refused_before_it_is_sent() -> None:
    most = MAX_RECORD_BYTES - record_bytes(None, b"")
    check_record("topic", None, bytes(most))
    with pytest.raises(RecordTooLarge, match="topic"):
        check_record("topic", None, bytes(most + 1))
    with pytest.raises(ValueError, match="tombstone"):
        check_record("topic", None, None)

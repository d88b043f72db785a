"""Safe offsets: nothing that is not settled is ever committed past."""

from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.broker import TopicPartition
from llmos_stream.roles.aggregator.offsets import SafeOffsets

AT = TopicPartition("f.updates", 0)


def test_what_is_buffered_holds_the_offset_back() -> None:
    offsets = SafeOffsets(lambda partition: None)
    for offset in range(3):
        offsets.read(AT, offset)
        offsets.hold(AT, offset)
    assert offsets.committable() == {}
    assert offsets.committable({AT: {0, 1}}) == {AT: 2}
    offsets.committed({AT: 2}, {AT: {0, 1}})
    assert offsets.committable() == {}
    assert offsets.committable({AT: {2}}) == {AT: 3}


def test_what_is_half_received_holds_the_offset_back() -> None:
    low: list[int | None] = [4]
    offsets = SafeOffsets(lambda partition: low[0])
    for offset in range(10):
        offsets.read(AT, offset)
    assert offsets.committable() == {AT: 4}
    low[0] = None
    assert offsets.committable() == {AT: 10}


def test_partitions_are_apart() -> None:
    other = TopicPartition("f.updates", 1)
    offsets = SafeOffsets(lambda partition: None)
    offsets.read(AT, 5)
    offsets.read(other, 7)
    offsets.hold(other, 7)
    assert offsets.committable() == {AT: 6, other: 7}


@given(
    st.lists(st.tuples(st.sampled_from(["refused", "buffered"]), st.integers(1, 3)), min_size=1, max_size=30),
    st.data(),
)
def test_equals_the_naive_rule(messages: list[tuple[str, int]], data: st.DataObject) -> None:
    """Naive: the first record of the first unsettled message, or the end."""
    offsets = SafeOffsets(lambda partition: None)
    begins, end, unsettled = [], 0, set()
    for verdict, records in messages:
        first = end
        for offset in range(first, first + records):
            offsets.read(AT, offset)
        end += records
        offsets.hold(AT, first)
        if verdict == "refused":
            offsets.release(AT, first)
        else:
            unsettled.add(first)
            begins.append(first)
    settled = set(data.draw(st.lists(st.sampled_from(begins)))) if begins else set()
    expected = min([end, *(unsettled - settled)])
    assert offsets.committable({AT: settled}) == ({AT: expected} if expected else {})

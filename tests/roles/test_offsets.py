"""Safe offsets: nothing that is not settled is ever committed past."""

from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.broker import TopicPartition
from llmos_stream.roles.aggregator.offsets import SafeOffsets
from llmos_stream.types import Contribution

AT = TopicPartition("f.updates", 0)


def _manifest(*offsets: int) -> list[Contribution]:
    """Contributions that begin at these offsets of partition 0."""
    return [Contribution("c", offset, 0, offset, 1, 0, 1.0, 1.0, bytes(32)) for offset in offsets]


def test_what_is_buffered_holds_the_offset_back() -> None:
    offsets = SafeOffsets(lambda partition: None)
    for offset in range(3):
        offsets.read(AT, offset)
        offsets.hold(0, offset)
    assert offsets.committable() == {}
    assert offsets.committable(_manifest(0, 1)) == {AT: 2}
    offsets.committed({AT: 2}, _manifest(0, 1))
    assert offsets.committable() == {}
    assert offsets.committable(_manifest(2)) == {AT: 3}


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
    offsets.hold(1, 7)
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
        offsets.hold(0, first)
        if verdict == "refused":
            offsets.release(0, first)
        else:
            unsettled.add(first)
            begins.append(first)
    settled = set(data.draw(st.lists(st.sampled_from(begins)))) if begins else set()
    expected = min([end, *(unsettled - settled)])
    assert offsets.committable(_manifest(*settled)) == ({AT: expected} if expected else {})

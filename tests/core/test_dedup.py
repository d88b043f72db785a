import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.core import SequenceWindow
from llmos_stream.core.dedup import WINDOW, Sequences
from llmos_stream.errors import StateError

near = st.integers(0, 40)
edges = st.sampled_from([WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW, 5000, 5001])
far = st.integers(0, 2**62)
arrivals = st.lists(near | edges | far, max_size=60)


class Naive:
    """Keeps every sequence; what is 1024 or more below the highest counts as a repeat."""

    def __init__(self) -> None:
        self.all: set[int] = set()

    def seen(self, sequence: int) -> bool:
        return sequence in self.all or (bool(self.all) and sequence <= max(self.all) - 1024)


@given(arrivals)
def test_agrees_with_a_set_of_everything_seen(sequences: list[int]) -> None:
    window, naive = SequenceWindow(), Naive()
    for sequence in sequences:
        assert window.seen(sequence) == naive.seen(sequence)
        if not naive.seen(sequence):
            window.add(sequence)
            naive.all.add(sequence)
    assert [window.seen(sequence) for sequence in range(50)] == [naive.seen(sequence) for sequence in range(50)]


@given(st.permutations(range(200)))
def test_any_order_counts_each_once(order: list[int]) -> None:
    window = SequenceWindow()
    for sequence in order:
        assert not window.seen(sequence)
        window.add(sequence)
    assert all(window.seen(sequence) for sequence in order)


def test_the_window_reaches_back_exactly_1024_sequences() -> None:
    window = SequenceWindow()
    window.add(WINDOW)
    assert not window.seen(1)
    assert window.seen(0)


def test_a_jump_costs_no_more_memory_than_a_step() -> None:
    window = SequenceWindow()
    for sequence in (0, 2**62, 2**63 - 1):
        window.add(sequence)
        assert window.bits.bit_length() <= WINDOW


@pytest.mark.parametrize("sequence", [5, -1, -(2**70)])
def test_adding_twice_or_below_zero_is_a_programming_error(sequence: int) -> None:
    window = SequenceWindow()
    window.add(5)
    with pytest.raises(ValueError, match="added before"):
        window.add(sequence)


@given(arrivals)
def test_a_window_comes_back_from_plain_small_integers(sequences: list[int]) -> None:
    window = SequenceWindow()
    for sequence in sequences:
        if not window.seen(sequence):
            window.add(sequence, version=3)
    if not sequences:
        return
    numbers = json.loads(json.dumps(window.dump()))
    assert all(0 <= number < 2**64 for number in numbers)
    assert len(numbers) <= 18
    back = SequenceWindow.load(numbers)
    assert (back.highest, back.bits, back.version) == (window.highest, window.bits, window.version)


@pytest.mark.parametrize(
    "numbers",
    [[], [1], [1, 2], [1, 2, 4], [-1, 0, 1], [1, 2, 2**64 + 1], [1, 2, *[1] * 17], [1, -2, 1], [2**62 + 1, 2, 1]],
)
def test_a_damaged_window_is_told(numbers: list[int]) -> None:
    with pytest.raises(StateError, match="damaged"):
        SequenceWindow.load(numbers)


def test_clients_do_not_disturb_each_other() -> None:
    sequences = Sequences()
    sequences.add("ann", 1, version=0)
    assert sequences.seen("ann", 1)
    assert not sequences.seen("bob", 1)
    assert not sequences.seen("ann", 2)


def test_those_silent_for_long_are_forgotten_and_no_others() -> None:
    sequences = Sequences()
    for version, client in enumerate(["ann", "bob", "cat", "ann"]):
        sequences.add(client, version, version)
    sequences.forget_before(2)
    assert not sequences.seen("bob", 1)
    assert sequences.seen("ann", 0)
    assert sequences.seen("cat", 2)
    assert len(sequences) == 2


def test_a_refused_repeat_leaves_the_collection_as_it_was() -> None:
    sequences = Sequences()
    sequences.add("ann", 1, version=0)
    before = sequences.dump()
    with pytest.raises(ValueError, match="added before"):
        sequences.add("ann", 1, version=9)
    assert sequences.dump() == before


@given(st.lists(st.tuples(st.sampled_from("abcdef"), near), max_size=40), st.integers(0, 40), st.booleans())
def test_the_collection_comes_back_and_goes_on_forgetting(
    items: list[tuple[str, int]], oldest: int, shuffled: bool
) -> None:
    sequences = Sequences()
    for version, (client, sequence) in enumerate(items):
        if not sequences.seen(client, sequence):
            sequences.add(client, sequence, version)
    dumped = sequences.dump()
    back = Sequences.load(dict(reversed(dumped.items())) if shuffled else dumped)
    assert back.dump() == dumped
    back.forget_before(oldest)
    assert back.dump() == {client: numbers for client, numbers in dumped.items() if numbers[1] >= oldest}

"""A client's next sequence is one that counts, whoever else has sent under its name."""

from contextlib import nullcontext

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.core.client_sequences import (
    APART,
    CHANCES,
    FURTHEST_AHEAD,
    HIGHEST_FIRST,
    check_sequence,
    next_sequence,
)
from llmos_stream.core.dedup import WINDOW, SequenceWindow
from llmos_stream.errors import Rejected, StateError

sequences = st.integers(0, 1 << 40)
some_folded = st.lists(st.integers(0, 3 * WINDOW), min_size=1, unique=True)
chances = st.integers(0, CHANCES - 1)


def _window(*folded: int) -> SequenceWindow:
    window = SequenceWindow()
    for sequence in folded:
        window.add(sequence)
    return window


def test_without_others_it_is_the_next() -> None:
    assert next_sequence(7, None, 0) == 7
    assert next_sequence(7, _window(6), 0) == 7
    assert next_sequence(7, None, 0, apart=True) == 7


def test_what_is_spent_is_left_behind_by_half_a_window() -> None:
    assert next_sequence(5, _window(4, 5, 6), 3) == 6 + APART + 3


def test_a_hole_in_the_window_is_filled_while_it_is_not_near_its_end() -> None:
    assert next_sequence(5, _window(4, 5 + APART), 0) == 5
    assert next_sequence(5, _window(4, 5 + WINDOW - 1), 0) == 4 + WINDOW + APART


def test_a_window_that_leaves_no_room_is_none() -> None:
    with pytest.raises(StateError):
        SequenceWindow.load(_window((1 << 63) - 1).dump())


@pytest.mark.parametrize(
    ("sequence", "window", "fits"),
    [
        (HIGHEST_FIRST, None, True),
        (HIGHEST_FIRST + 1, None, False),
        ((1 << 63) - 1, None, False),
        (7 + FURTHEST_AHEAD, _window(7), True),
        (8 + FURTHEST_AHEAD, _window(7), False),
        (HIGHEST_FIRST, _window(7), False),
    ],
)
def test_no_sequence_takes_those_above_it_from_a_client(
    sequence: int, window: SequenceWindow | None, fits: bool
) -> None:
    with nullcontext() if fits else pytest.raises(Rejected, match="sequence_ahead"):
        check_sequence(sequence, window)


@given(st.integers(0, HIGHEST_FIRST), st.integers(0, CHANCES - 1), st.booleans())
def test_whoever_sends_as_high_as_is_taken_leaves_its_namesake_room(first: int, chance: int, is_new: bool) -> None:
    window = _window(first)
    window.add(first + FURTHEST_AHEAD)
    taken = next_sequence(0 if is_new else first + 1, window, chance, apart=is_new)
    check_sequence(taken, window)
    check_sequence(next_sequence(taken, None, chance), None)  # once the aggregator has forgotten the client
    assert not window.seen(taken)


@given(
    sequences, st.lists(st.integers(0, 3 * WINDOW), min_size=1, unique=True), st.integers(0, CHANCES - 1), st.booleans()
)
def test_what_is_taken_counts_and_is_never_below_what_was_wanted(
    wanted: int, folded: list[int], chance: int, apart: bool
) -> None:
    window = _window(*sorted(folded))
    taken = next_sequence(wanted, window, chance, apart=apart)
    assert taken >= wanted
    assert not window.seen(taken)


@given(chances, chances, st.integers(1, 3))
def test_two_who_send_under_one_name_in_turn_both_count(first: int, second: int, ahead: int) -> None:
    """The second starts from nothing; either knows what was folded before its turn."""
    window, next_of = _window(0), [1, 0]
    for turn in range(3000):
        who = 1 if turn % (ahead + 1) else 0
        apart = who == 1 and next_of[1] == 0
        taken = next_sequence(next_of[who], window, (first, second)[who], apart=apart)
        window.add(taken)  # raises ValueError for a repeat
        next_of[who] = taken + 1

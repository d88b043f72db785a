import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_stream.reporting.history.series import (
    CLOCK_SKEW_MS,
    Bins,
    Mean,
    Rate,
    Recent,
    Thinned,
    TimeRange,
    Window,
    Windows,
)


@settings(deadline=None)
@given(st.integers(2, 20), st.integers(0, 500))
def test_thinned_is_bounded_even_and_has_the_ends(limit: int, count: int) -> None:
    thinned: Thinned[int] = Thinned(limit)
    for number in range(count):
        thinned.add(number)
    kept = list(thinned)
    assert len(kept) == len(thinned) <= limit + 1
    assert thinned.total == count
    assert kept[:1] == ([0] if count else [])
    assert kept[-1:] == ([count - 1] if count else [])
    regular = kept if not count or (count - 1) % thinned.stride == 0 else kept[:-1]
    assert regular == list(range(0, count, thinned.stride))


def test_thinned_keeps_everything_below_its_limit() -> None:
    thinned: Thinned[int] = Thinned(100)
    for number in range(99):
        thinned.add(number)
    assert list(thinned) == list(range(99))


def test_thinned_needs_two_places() -> None:
    with pytest.raises(ValueError, match="limit"):
        Thinned(1)


@settings(deadline=None)
@given(st.lists(st.integers(0, 60), max_size=200))
def test_window_is_exact_while_it_holds_everything(numbers: list[int]) -> None:
    window, seen = Window(64), set[int]()
    for number in numbers:
        assert window.is_new(number) == (number not in seen)
        seen.add(number)


def test_window_takes_what_is_older_than_it_remembers_as_seen() -> None:
    window = Window(4)
    assert [window.is_new(number) for number in (10, 12, 14, 16, 18)] == [True] * 5
    assert not window.is_new(9)
    assert window.is_new(17)
    assert [window.is_new(number) for number in (10, 12, 14, 16, 17, 18)] == [False] * 6


def test_windows_are_apart_and_bounded() -> None:
    windows = Windows(limit=2)
    assert windows.is_new("a", 1)
    assert windows.is_new("b", 1)
    assert not windows.is_new("a", 1)
    assert windows.is_new("c", 1)
    assert windows.is_new("c", 1)


def test_recent_forgets_the_oldest() -> None:
    recent = Recent(2)
    assert [recent.is_new(name) for name in "aabcab"] == [True, False, True, True, True, True]


def test_mean_leaves_out_what_was_not_told() -> None:
    mean = Mean()
    assert mean.value is None
    for number in (1.0, None, 3.0):
        mean.add(number)
    assert mean.value == 2.0


def test_rate_counts_the_window_that_ends_now() -> None:
    rate = Rate(window=10)
    assert rate.per_second() == 0
    for second in range(20):
        rate.add(1000 * second)
        rate.add(1000 * second + 400)
    assert rate.per_second() == 2.0
    assert rate.per_second(24_000) == 1.0
    assert rate.per_second(60_000) == 0.0


def test_rate_of_a_young_run_is_over_its_age() -> None:
    rate = Rate(window=30)
    for _ in range(6):
        rate.add(100_000)
    assert rate.per_second(101_000) == 3.0


def test_rate_does_not_mind_the_order_and_stays_small() -> None:
    forward, backward = Rate(window=5), Rate(window=5)
    for second in range(1000):
        forward.add(1000 * second)
        backward.add(1000 * (999 - second))
    assert forward.per_second() == backward.per_second() == 1.0
    assert len(forward._counts) <= 5


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2**62), st.sampled_from("abc"), st.integers(0, 9)), max_size=100))
def test_bins_keep_every_sum(items: list[tuple[int, str, int]]) -> None:
    bins = Bins(limit=8)
    for version, name, weight in items:
        bins.add(version, name, weight)
    ranges = bins.ranges()
    assert len(ranges) <= 8
    for name in "abc":
        expected = [(version, weight) for version, other, weight in items if other == name]
        for first, sums in ranges:
            inside = [weight for version, weight in expected if first <= version < first + bins.width]
            assert sums.get(name, 0) == sum(inside)


def test_bins_rename_adds_up() -> None:
    bins = Bins()
    bins.add(1, "a", 2.0)
    bins.add(1, None, 3.0)
    bins.add(5, "a", 4.0)
    bins.rename("a", None)
    assert bins.ranges() == [(1, {None: 5.0}), (5, {None: 4.0})]


def test_span_takes_a_clients_time_only_near_the_servers() -> None:
    assert TimeRange().start_ms is TimeRange().end_ms is None
    span = TimeRange()
    span.add(70_000_000, by_server=False)
    assert (span.start_ms, span.end_ms) == (70_000_000, 70_000_000)
    span.add(100_000_000, by_server=True)
    span.add(100_001_000, by_server=True)
    assert (span.start_ms, span.end_ms) == (100_000_000, 100_001_000)
    near = TimeRange()
    near.add(100_000_000, by_server=True)
    near.add(99_990_000, by_server=False)
    near.add(100_009_000, by_server=False)
    assert (near.start_ms, near.end_ms) == (99_990_000, 100_009_000)
    assert near.plausible(100_000_000 + CLOCK_SKEW_MS) == 100_000_000 + CLOCK_SKEW_MS
    assert near.plausible(100_000_001 + CLOCK_SKEW_MS) == 100_000_000
    assert near.plausible(0) == 100_000_000

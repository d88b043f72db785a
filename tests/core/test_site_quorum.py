"""When what sites report counts: at the quorum, at the deadline, once, and only of those that take part."""

from collections.abc import Callable

import pytest

from llmos_stream.core.site_quorum import MOST, SITES_KEPT, VERSIONS_KEPT, SiteQuorum


def _everybody(_: str) -> bool:
    return True


def _only(*sites: str) -> Callable[[str], bool]:
    return lambda site: site in sites


def _take(quorum: SiteQuorum[str], version: int, *sites: str, now: float = 0.0, first_offset: int = 0) -> list[bool]:
    return [
        quorum.take(version, site, f"{site}{version}", first_offset + index, now, _everybody)
        for index, site in enumerate(sites)
    ]


def _counted(
    quorum: SiteQuorum[str], now: float = 0.0, takes_part: Callable[[str], bool] = _everybody, many: int = 4
) -> list[tuple[int, list[str]]]:
    return [(version, sorted(reports)) for version, reports in quorum.counted(takes_part, many, now)]


def test_a_version_counts_once_when_the_quorum_has_reported() -> None:
    quorum = SiteQuorum[str](3, 60.0)
    assert _take(quorum, 5, "a", "b") == [True, True]
    assert _counted(quorum) == []
    _take(quorum, 5, "c")
    assert quorum.counted(_everybody, 4, 0.0) == [(5, {"a": "a5", "b": "b5", "c": "c5"})]
    assert _take(quorum, 5, "d") == [False]
    assert _counted(quorum) == []


def test_a_repeat_is_not_a_second_site() -> None:
    quorum = SiteQuorum[str](2, 60.0)
    assert _take(quorum, 1, "a", "a") == [True, False]
    assert _counted(quorum) == []


@pytest.mark.parametrize(("quorum", "enough"), [(2, 1), (3, 2), (4, 2), (5, 3)])
def test_after_the_deadline_half_of_the_quorum_is_enough(quorum: int, enough: int) -> None:
    waits = SiteQuorum[str](quorum, 60.0)
    sites = [f"s{number}" for number in range(enough)]
    _take(waits, 1, sites[0], now=10.0)
    _take(waits, 1, *sites[1:], now=60.0)
    assert _counted(waits, now=69.9) == []
    assert _counted(waits, now=70.0) == [(1, sites)]


def test_with_fewer_it_counts_as_soon_as_half_have() -> None:
    quorum = SiteQuorum[str](4, 60.0)
    _take(quorum, 1, "a")
    assert _counted(quorum, now=100.0) == []
    assert quorum.waiting(_everybody) == [(1, 1)]
    _take(quorum, 1, "b", now=101.0)
    assert _counted(quorum, now=101.0) == [(1, ["a", "b"])]


@pytest.mark.parametrize(("many", "wanted"), [(0, 1), (1, 1), (2, 2), (3, 2), (4, 3), (8, MOST), (1000, MOST)])
def test_unset_it_is_more_than_half_of_those_that_take_part(many: int, wanted: int) -> None:
    quorum = SiteQuorum[str](None, 60.0)
    sites = [f"s{number}" for number in range(wanted)]
    _take(quorum, 1, *sites[:-1])
    assert _counted(quorum, many=many) == []
    _take(quorum, 1, sites[-1])
    assert _counted(quorum, many=many) == [(1, sites)]


def test_a_name_that_takes_no_part_does_not_count_until_it_does() -> None:
    quorum = SiteQuorum[str](2, 60.0)
    _take(quorum, 0, "a", "b", "stranger")
    assert _counted(quorum, takes_part=_only("a")) == []
    assert _counted(quorum, takes_part=_only("a", "b")) == []  # nobody said that others take part now
    quorum.look_again()
    assert _counted(quorum, takes_part=_only("a", "b")) == [(0, ["a", "b"])]


def test_strangers_keep_nobody_out() -> None:
    quorum = SiteQuorum[str](2, 60.0)
    _take(quorum, 3, *(f"forged{number}" for number in range(SITES_KEPT + 10)))
    known = _only("a", "b")
    assert [quorum.take(3, site, "", 9, 0.0, known) for site in ("a", "b", "c")] == [True, True, False]
    assert _counted(quorum, takes_part=known) == [(3, ["a", "b"])]


def test_what_waits_is_bounded_and_the_newest_stay() -> None:
    quorum = SiteQuorum[str](2, 60.0)
    for version in range(3 * VERSIONS_KEPT):
        _take(quorum, version, "a")
    newest = 3 * VERSIONS_KEPT - 1
    assert _take(quorum, newest - VERSIONS_KEPT - 1, "b") == [False]
    assert _take(quorum, newest, "b") == [True]
    assert _counted(quorum) == [(newest, ["a", "b"])]


def test_it_is_read_again_from_the_oldest_that_waits() -> None:
    assert SiteQuorum[str](2, 60.0).oldest_offset is None
    quorum = SiteQuorum[str](2, 60.0)
    _take(quorum, 1, "a", first_offset=7)
    _take(quorum, 2, "a", "b", first_offset=8)
    _counted(quorum)
    assert quorum.oldest_offset == 7
    again = SiteQuorum[str](2, 60.0)
    again.load(quorum.dump())
    assert _take(again, 2, "a", "b") == [False, False]  # it has counted
    assert _take(again, 1, "a", "b") == [True, True]
    assert _counted(again) == [(1, ["a", "b"])]


@pytest.mark.parametrize("dumped", [None, 3, "x", [None, "x", 1.5, True], {}])
def test_a_damaged_dump_is_passed_over(dumped: object) -> None:
    quorum = SiteQuorum[str](1, 60.0)
    quorum.load(dumped)
    _take(quorum, 1, "a")
    assert _counted(quorum) == [(1, ["a"])]


def test_what_is_too_late_does_not_hold_up_the_place_in_the_log() -> None:
    quorum = SiteQuorum[str](4, 60.0)
    _take(quorum, 1, "a", first_offset=7)
    _counted(quorum, now=100.0)
    assert quorum.oldest_offset is None

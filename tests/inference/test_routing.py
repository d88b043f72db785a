"""Which version answers: every case of what is held, promoted, pinned and sent to the newest, against the words."""

import itertools
from collections.abc import Callable

import pytest

from llmos_stream.config import InferenceSettings
from llmos_stream.inference.model_pool import ModelPool, NotLoaded
from llmos_stream.inference.routing import Choice, Route, Why, choose, serving
from tests.inference.aids import loaded

_NUMBERS = (1, 2, 3)
_SOME = [set(some) for size in range(4) for some in itertools.combinations(_NUMBERS, size)]


@pytest.mark.parametrize("there", _SOME)
def test_every_case(there: set[int]) -> None:
    some = (None, *_NUMBERS)
    for promoted, pin, canary, draw in itertools.product(some, some, (0.0, 0.25, 1.0), (0.0, 0.2499, 0.25, 0.9999)):
        route = Route(pin, canary)
        expected = None
        if there:
            order = [(pin, Why.PINNED), (promoted, Why.PROMOTED), (max(there), Why.NEWEST)]
            expected = next(Choice(number, why) for number, why in order if number is not None and number in there)
        assert serving(there, promoted, route) == expected
        if expected is not None and draw < canary and expected.version != max(there):
            expected = Choice(max(there), Why.CANARY)
        assert choose(there, promoted, route, draw) == expected


def test_the_canary_gets_its_share() -> None:
    draws = [number / 1000 for number in range(1000)]
    picked = [choose({1, 2}, 1, Route(canary=0.1), draw) for draw in draws]
    assert picked.count(Choice(2, Why.CANARY)) == 100
    assert picked.count(Choice(1, Why.PROMOTED)) == 900


def _pool(*versions: int, keep: int = 2) -> ModelPool:
    pool = ModelPool(InferenceSettings(keep=keep))
    for version in versions:
        pool.publish(loaded(version))
    return pool


def test_the_newest_are_kept_and_the_one_to_go_back_to() -> None:
    assert list(_pool(*range(10), keep=3).models) == [7, 8, 9]
    assert list(_pool(*range(10), keep=1).models) == [8, 9]


def test_what_is_wanted_is_kept_whatever_its_age() -> None:
    pool = _pool(1, 2)
    pool.promote(1)
    for version in range(3, 8):
        pool.publish(loaded(version))
    assert {1, 6, 7} <= pool.models.keys()
    assert 3 not in pool.models
    pool.set_route(Route(pin=6))
    for version in range(8, 12):
        pool.publish(loaded(version))
    assert set(pool.models) == {1, 6, 10, 11}
    assert pool.serving == Choice(6, Why.PINNED)


def test_a_promoted_version_of_before_stays() -> None:
    pool = _pool(8, 9, 10)
    pool.publish(loaded(3), promoted=True)
    assert pool.serving == Choice(3, Why.PROMOTED)
    assert 3 in pool.models


def test_a_request_keeps_the_model_it_has() -> None:
    pool = _pool(1)
    mine, _ = pool.pick()
    before = pool.models
    for version in range(2, 9):
        pool.publish(loaded(version))
    assert 1 not in pool.models
    assert before == {1: mine}  # the mapping is replaced, never written to


def test_going_back_step_by_step_to_what_served() -> None:
    pool = _pool(1, 2, 3, keep=3)
    assert pool.roll_back() == Choice(2, Why.PINNED)
    assert pool.serving == Choice(2, Why.PINNED)
    pool.publish(loaded(4))
    assert pool.serving == Choice(2, Why.PINNED)
    assert pool.roll_back() == Choice(1, Why.PINNED)
    with pytest.raises(NotLoaded, match="pin one of GET /v1/models"):
        pool.roll_back()
    pool.set_route(Route())
    assert pool.serving == Choice(4, Why.NEWEST)
    assert pool.roll_back() == Choice(1, Why.PINNED)


def test_going_back_from_a_promotion_ends_the_canary() -> None:
    pool = _pool(1, 2, 3, keep=3)
    pool.promote(1)
    pool.promote(2)
    pool.set_route(Route(canary=0.5))
    pool.roll_back()
    assert pool.route == Route(pin=1)


_CHANGES: dict[str, Callable[[ModelPool], object]] = {
    "pin": lambda pool: pool.set_route(Route(pin=7)),
    "ask": lambda pool: pool.pick(7),
    "promote": lambda pool: pool.promote(7),
}


@pytest.mark.parametrize("change", _CHANGES.values(), ids=_CHANGES)
def test_what_is_not_held_is_refused_and_nothing_changes(change: Callable[[ModelPool], object]) -> None:
    pool = _pool(1, 2)
    with pytest.raises(NotLoaded, match="version 7 is not held; held are: 1, 2"):
        change(pool)
    assert pool.serving == Choice(2, Why.NEWEST)

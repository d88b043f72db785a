"""When a model counts as collapsed, and that it is told once."""

import itertools
import math

import orjson
import pytest

from llmos_stream.config import GuardSettings
from llmos_stream.core.collapse import Collapse, CollapseGuard, loss_of


def _guard(**fields: object) -> CollapseGuard:
    return CollapseGuard(GuardSettings.model_validate({"loss_factor": 3.0, "window": 4, **fields}))


def _found(guard: CollapseGuard, *losses: float, first: int = 0) -> list[int]:
    """The versions at which a collapse is told."""
    return [version for version, loss in enumerate(losses, first) if guard.observe(version, loss) is not None]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 3.1, 1e30])
def test_a_loss_that_is_not_finite_or_far_above_the_best_is_a_collapse(bad: float) -> None:
    guard = _guard()
    assert _found(guard, 2.0, 1.0, 2.9) == []
    collapse = guard.observe(3, bad)
    assert isinstance(collapse, Collapse)
    assert (collapse.version, collapse.best, collapse.limit) == (3, (1, 1.0), 3.0)


def test_it_is_told_once_until_a_newer_version_is_good_again() -> None:
    assert _found(_guard(), 1.0, math.nan, math.nan, 9.0, 1.5, math.nan, 9.0) == [1, 5]


def test_only_the_last_ones_count() -> None:
    assert _found(_guard(), 1.0, 2.5, 2.5, 2.5, 2.9, 7.0) == []
    assert _found(_guard(window=20), 1.0, 2.5, 2.5, 2.5, 2.9, 7.0) == [5]


def test_no_other_version_and_no_positive_loss_leave_only_what_is_not_finite() -> None:
    assert _found(_guard(), 50.0) == []
    assert _found(_guard(), math.nan) == [0]
    assert _found(_guard(), -5.0, 100.0) == []
    assert _found(_guard(), 0.0, 100.0, math.inf) == [2]


@pytest.mark.parametrize("order", [*itertools.permutations(range(4))])
def test_late_and_repeated_evaluations_change_nothing(order: tuple[int, ...]) -> None:
    guard, losses = _guard(), [2.0, 1.0, 1.2, 1.1]
    for version in [*order, *order]:
        assert guard.observe(version, losses[version]) is None
    collapse = guard.observe(4, 3.5)
    assert collapse is not None
    assert collapse.best == (1, 1.0)


def test_after_a_rollback_what_came_before_is_not_told_of() -> None:
    guard = _guard()
    assert _found(guard, 1.0, 1.1, math.nan) == [2]
    guard.forget_before(5)
    assert _found(guard, math.nan, math.nan, first=3) == []
    assert _found(guard, 1.1, math.nan, first=5) == [6]


def test_what_was_learnt_survives_as_json() -> None:
    guard, again = _guard(), _guard()
    _found(guard, 2.0, 1.0, math.nan)
    again.load(orjson.loads(orjson.dumps(guard.dump())))
    assert again.dump() == guard.dump()
    assert again.observe(3, math.nan) is None
    broken: tuple[object, ...] = (None, [], {}, {"good": 3, "collapsed": None, "since": 0})
    for damaged in broken:
        before = again.dump()
        again.load(damaged)
        assert again.dump() == before


def test_the_loss_of_an_evaluation() -> None:
    assert loss_of({"loss": 1.5, "accuracy": 0.2}) == 1.5
    assert loss_of({"accuracy": 0.2}) is None
    assert math.isnan(loss_of({"loss": None}) or 0.0)

import json
import math
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import StopSettings
from llmos_stream.core import Stop
from llmos_stream.core.stopping import StopRule
from llmos_stream.errors import ConfigError, StateError
from tests.core import oracles


def rule(**settings: Any) -> StopRule:
    return StopRule(StopSettings(**settings))


def outcomes(stop_rule: StopRule, values: Mapping[int, float] | list[tuple[int, float]]) -> list[str | None]:
    items = values.items() if isinstance(values, Mapping) else values
    stops = [stop_rule.observe_evaluation(version, {"accuracy": value}) for version, value in items]
    return [stop.reason if stop else None for stop in stops]


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("max", [0.5, 0.79, 0.8], [None, None, "target"]),
        ("max", [0.9], ["target"]),
        ("max", [math.nan, math.inf, -math.inf], [None, None, None]),
        ("min", [1.5, 0.81, 0.8], [None, None, "target"]),
        ("min", [-3.0], ["target"]),
        ("min", [math.nan, -math.inf, math.inf], [None, None, None]),
    ],
)
def test_target(mode: str, values: list[float], expected: list[str | None]) -> None:
    assert outcomes(rule(mode=mode, target=0.8), dict(enumerate(values))) == expected


@pytest.mark.parametrize(
    ("mode", "min_delta", "values", "expected"),
    [
        ("max", 0.0, [0.5, 0.4, 0.4], [None, None, "patience"]),
        ("max", 0.0, [0.5, 0.5, 0.5], [None, None, "patience"]),
        ("max", 0.0, [0.5, 0.4, 0.6, 0.5, 0.5], [None, None, None, None, "patience"]),
        ("max", 0.25, [0.5, 0.625, 0.75], [None, None, "patience"]),
        ("max", 0.25, [0.5, 0.625, 1.0], [None, None, None]),
        ("min", 0.0, [0.5, 0.6, 0.7], [None, None, "patience"]),
        ("min", 0.0, [0.5, 0.4, 0.3, 0.2], [None] * 4),
        ("min", 0.25, [0.75, 0.625, 0.25, 0.5], [None] * 4),
        ("max", 0.0, [math.nan, math.nan], [None, "patience"]),
        ("max", 0.0, [math.nan, 0.1, math.nan, math.inf], [None, None, None, "patience"]),
    ],
)
def test_patience_of_2(mode: str, min_delta: float, values: list[float], expected: list[str | None]) -> None:
    assert outcomes(rule(mode=mode, patience=2, min_delta=min_delta), dict(enumerate(values))) == expected


def test_an_evaluation_heard_twice_counts_once() -> None:
    items = [(1, 0.5), (1, 0.5), (2, 0.4), (2, 0.4), (2, 0.4), (1, 0.5), (3, 0.3)]
    assert outcomes(rule(patience=2), items) == [None] * 6 + ["patience"]


def test_a_late_evaluation_that_is_the_best_puts_the_count_right() -> None:
    stop_rule = rule(patience=3)
    assert outcomes(stop_rule, [(1, 0.5), (4, 0.4), (5, 0.6), (3, 0.9), (6, 0.1)]) == [None] * 4 + ["patience"]
    assert stop_rule.best == (3, 0.9)


def test_evaluations_older_than_the_best_do_not_count() -> None:
    assert outcomes(rule(patience=2), [(9, 0.9), (1, 0.1), (2, 0.2), (3, 0.3), (10, 0.8)]) == [None] * 5


@given(st.data(), st.sampled_from(["max", "min"]), st.integers(1, 4))
def test_the_order_of_arrival_does_not_matter(data: st.DataObject, mode: str, patience: int) -> None:
    values = data.draw(st.lists(st.floats(-1, 1), min_size=1, max_size=10, unique=True))
    by_version = dict(enumerate(values))
    order = data.draw(st.permutations(list(by_version)))
    repeats = data.draw(st.lists(st.sampled_from(order), max_size=5))
    last = outcomes(rule(mode=mode, patience=patience), [(v, by_version[v]) for v in [*order, *repeats]])[-1]
    assert (last == "patience") == oracles.patience_spent(by_version, mode, patience)


def test_target_and_patience_together() -> None:
    assert outcomes(rule(target=0.9, patience=1), {0: 0.5, 1: 0.95, 2: 0.1}) == [None, "target", "patience"]


def test_a_metric_that_is_not_there_is_a_bad_setting_that_says_what_is() -> None:
    with pytest.raises(ConfigError, match=r"stop\.metric: no metric 'accuracy', .*\['f1', 'loss'\]"):
        rule(target=0.5).observe_evaluation(0, {"loss": 1.0, "f1": 0.1})


def test_a_metric_that_nothing_looks_at_may_be_missing() -> None:
    assert rule(max_versions=3).observe_evaluation(0, {"loss": 1.0}) is None


@pytest.mark.parametrize(("number", "stops"), [(0, False), (4, False), (5, True), (6, True)])
def test_the_limit_on_versions(number: int, stops: bool) -> None:
    stop = rule(max_versions=5).observe_version(number)
    assert (stop is not None) == stops
    assert stop is None or stop.reason == "max_versions"


@pytest.mark.parametrize(("elapsed", "stops"), [(0.0, False), (59.9, False), (60.0, True), (1e6, True)])
def test_the_limit_on_time(elapsed: float, stops: bool) -> None:
    stop = rule(max_seconds=60.0).tick(elapsed)
    assert (stop is not None) == stops
    assert stop is None or stop.reason == "max_seconds"


def test_without_limits_a_run_goes_on() -> None:
    stop_rule = rule()
    assert stop_rule.observe_version(10**9) is None
    assert stop_rule.tick(1e9) is None
    assert stop_rule.observe_evaluation(1, {}) is None


def test_a_stop_says_why_in_words() -> None:
    stop = rule(target=0.8).observe_evaluation(7, {"accuracy": 0.85})
    assert stop == Stop("target", "accuracy 0.85 at version 7 reached the target 0.8")


def test_patience_goes_on_where_it_was_left() -> None:
    first = rule(patience=3)
    for version, value in enumerate([0.5, 0.7, 0.6]):
        assert first.observe_evaluation(version, {"accuracy": value}) is None
    second = rule(patience=3)
    second.load(json.loads(json.dumps(first.dump())))
    assert second.best == (1, 0.7)
    assert second.observe_evaluation(3, {"accuracy": 0.6}) is None
    stop = second.observe_evaluation(4, {"accuracy": 0.6})
    assert stop is not None
    assert stop.reason == "patience"


@pytest.mark.parametrize("dumped", [{}, {"best": 1, "newest": []}, {"best": None, "newest": ["a"]}, {"best": [1, 2.0]}])
def test_a_damaged_state_is_refused(dumped: dict[str, object]) -> None:
    with pytest.raises(StateError, match="damaged"):
        rule(patience=3).load(dumped)

"""What an evaluation may say, and what several sites say together."""

import math
from typing import Any

import pytest

from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import (
    LARGEST,
    MOST_EXAMPLES,
    MOST_METRICS,
    SiteReport,
    less_is_better,
    metric_names,
    site_fault,
    site_of,
    site_report,
    together,
)


def _event(role: str = "client", **data: Any) -> Event:
    told = {"client_id": "a", "version": 1, "metrics": {"loss": 0.5}, "num_examples": 10}
    return Event(EventKind.EVALUATION, role, 0, told | data)


def _reports(**values: tuple[int, float | None]) -> dict[str, SiteReport]:
    return {site: SiteReport(count, {"loss": value}) for site, (count, value) in values.items()}


def test_a_clients_evaluation_has_no_fault() -> None:
    assert site_fault(_event()) is None
    assert site_of(_event()) == "a"
    assert site_report(_event().data) == SiteReport(10, {"loss": 0.5})


def test_an_evaluators_evaluation_is_of_no_site() -> None:
    event = Event(EventKind.EVALUATION, "evaluator", 0, {"version": 1, "metrics": {}})
    assert site_fault(event) is None
    assert site_of(event) is None


@pytest.mark.parametrize(
    "event",
    [
        _event("evaluator"),
        Event(EventKind.EVALUATION, "client", 0, {"version": 1, "metrics": {}, "num_examples": 1}),
        _event(client_id="a b"),
        _event(client_id=""),
        _event(num_examples=0),
        _event(num_examples=-5),
        _event(num_examples=None),
        _event(num_examples=MOST_EXAMPLES + 1),
        _event(num_examples=True),
        _event(metrics={str(number): 1.0 for number in range(MOST_METRICS + 1)}),
    ],
)
def test_what_no_client_and_no_evaluator_says(event: Event) -> None:
    assert site_fault(event)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf, 2 * LARGEST, True, "low", 10**400])
def test_a_value_that_is_no_number_to_add_up_is_none(value: object) -> None:
    expected = 1.0 if value is True else None
    assert site_report({"metrics": {"loss": value}, "num_examples": 3}).metrics == {"loss": expected}


def test_the_mean_is_over_examples_and_the_spread_over_sites() -> None:
    said = together(_reports(a=(10, 1.0), b=(20, 2.0), c=(20, 4.0)), "loss")
    assert said is not None
    assert said.mean == pytest.approx((10 * 1 + 20 * 2 + 20 * 4) / 50)
    assert said.spread == pytest.approx(math.sqrt(((1 - 7 / 3) ** 2 + (2 - 7 / 3) ** 2 + (4 - 7 / 3) ** 2) / 3))
    assert (said.worst, said.worst_value, said.median, said.sites, said.not_finite) == ("c", 4.0, 2.0, 3, 0)


@pytest.mark.parametrize(("claimed", "counts_for"), [(30, 30), (31, 30), (MOST_EXAMPLES, 30)])
def test_a_site_counts_for_no_more_than_three_times_the_middle_one(claimed: int, counts_for: int) -> None:
    said = together(_reports(a=(10, 0.0), b=(10, 0.0), c=(claimed, 1.0)), "loss")
    assert said is not None
    assert said.mean == pytest.approx(counts_for / (20 + counts_for))


def test_among_many_a_site_has_at_most_half() -> None:
    many = {f"s{number}": (10, 0.0) for number in range(10)}
    said = together(_reports(**many, forger=(MOST_EXAMPLES, 1.0)), "loss")
    assert said is not None
    assert said.mean == pytest.approx(0.5)


def test_what_is_not_finite_is_counted_apart() -> None:
    said = together(_reports(a=(10, 1.0), b=(10, None)), "loss")
    assert said is not None
    assert (said.sites, said.not_finite, said.mean) == (1, 1, 1.0)
    assert together(_reports(a=(10, None)), "loss") is None
    assert together({}, "loss") is None


def test_the_worst_site_is_the_highest_loss_and_the_lowest_accuracy() -> None:
    reports = {
        "a": SiteReport(1, {"loss": 1.0, "accuracy": 0.9, "val_rmse": 3.0, "f1": 0.4}),
        "b": SiteReport(1, {"loss": 2.0, "accuracy": 0.8, "val_rmse": 2.0, "f1": 0.5}),
    }
    found = {name: said.worst for name in reports["a"].metrics if (said := together(reports, name)) is not None}
    assert found == {"loss": "b", "accuracy": "b", "val_rmse": "a", "f1": "a"}


@pytest.mark.parametrize("name", ["loss", "val_loss", "crossentropyloss", "rmse", "word.error", "perplexity"])
def test_of_a_loss_and_an_error_less_is_better(name: str) -> None:
    assert less_is_better(name)
    assert not less_is_better("accuracy")


def test_the_names_that_most_sites_tell_come_first() -> None:
    junk = {f"junk{number}": 1.0 for number in range(64)}
    reports = {"a": SiteReport(1, {"f1": 0.5, "loss": 1.0}), "b": SiteReport(1, {"f1": 0.5}), "z": SiteReport(1, junk)}
    assert metric_names(reports, 3) == ["loss", "f1", "junk0"]

"""A run as series: those of sites."""

from collections.abc import Iterable

from llmos_stream.reporting.history.points import Point, RunPoints
from llmos_stream.types import Event, EventKind, Role


def _measured(site: str | None, version: int, time_ms: int = 1, **more: object) -> Event:
    data = {"version": version, "metrics": {"accuracy": 0.5, "lost": None}, "num_examples": 4, **more}
    told = data if site is None else {"client_id": site, **data}
    return Event(EventKind.EVALUATION, Role.CLIENT if site else Role.EVALUATOR, time_ms, told)


def _points(events: Iterable[Event], clients: int = 50) -> list[Point]:
    run = RunPoints(clients)
    return [point for event in events for point in run.take(event)]


def test_a_site_has_a_series_of_each_metric_with_its_first_value_at_a_version() -> None:
    events = [_measured("a", 3, 10), _measured("a", 3, 11, metrics={"accuracy": 0.9}), _measured("a", 2, 12)]
    assert _points(events) == [Point("site/a/accuracy", 3, 10, 0.5), Point("site/a/accuracy", 2, 12, 0.5)]


def test_an_evaluators_and_what_was_trained_alone_are_none_of_it() -> None:
    events = [_measured(None, 1), _measured("a", 1, trained_by="b", since=0)]
    assert [point.name for point in _points(events)] == ["evaluation/accuracy"]


def test_so_many_sites_have_series_as_clients_and_the_order_of_other_topics_changes_nothing() -> None:
    sites = [_measured(f"s{number}", version) for version in range(2) for number in range(3)]
    clients = [
        Event(EventKind.UPDATE_SENT, Role.CLIENT, 1, {"client_id": f"c{number}", "sequence": 0, "base_version": 0})
        for number in range(3)
    ]
    one, other = _points([*clients, *sites], 2), _points([*sites, *clients], 2)
    assert sorted(one) == sorted(other)
    assert {point.name for point in one} == {"site/s0/accuracy", "site/s1/accuracy"}

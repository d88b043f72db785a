"""What sites measured, as the history keeps it: by site, by version, now; bounded; whoever writes what."""

import math

import pytest

from llmos_stream.reporting import History
from llmos_stream.reporting.history.sites import Sites
from llmos_stream.reporting.history.tables import Tables
from llmos_stream.reporting.site_charts import model_table
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import SiteReport


def _folded(client: str, version: int = 1) -> Event:
    data = {"client_id": client, "sequence": version, "version": version, "weight": 1.0, "num_examples": 10}
    return Event(EventKind.UPDATE_FOLDED, "aggregator", 1000 + version, data)


def _measured(client: str, version: int, accuracy: float | None, count: int = 10, **metrics: float) -> Event:
    told = {"accuracy": accuracy, **metrics}
    data = {"client_id": client, "version": version, "metrics": told, "num_examples": count}
    return Event(EventKind.EVALUATION, "client", 1000 + version, data)


def _history(*events: Event) -> History:
    history = History()
    for event in events:
        history.add(event)
    return history


_RUN = [
    *(_folded(client) for client in "abc"),
    _measured("a", 1, 0.5, 30),
    _measured("b", 1, 0.7),
    _measured("c", 1, 0.9),
    _measured("a", 2, 0.6, 30),
    _measured("b", 2, None),
]


def test_what_the_sites_say_together_of_each_version() -> None:
    versions = _history(*_RUN).sites.versions()
    assert [(one.version, one.sites, one.num_examples) for one in versions] == [(1, 3, 50), (2, 2, 40)]
    said = versions[0].metrics["accuracy"]
    assert said.mean == pytest.approx((30 * 0.5 + 10 * 0.7 + 10 * 0.9) / 50)
    assert said.spread == pytest.approx(math.sqrt(0.08 / 3))
    assert (said.worst, said.worst_value) == ("a", 0.5)
    assert (versions[1].metrics["accuracy"].sites, versions[1].metrics["accuracy"].not_finite) == (1, 1)


def test_now_is_each_site_at_its_newest_version() -> None:
    now = _history(*_RUN).sites.now()
    assert now is not None
    assert (now.version, now.sites) == (2, 3)
    assert now.metrics["accuracy"].mean == pytest.approx((30 * 0.6 + 10 * 0.9) / 40)
    assert now.metrics["accuracy"].not_finite == 1


def test_it_is_apart_from_what_an_evaluator_measured() -> None:
    assert _history(*_RUN).scores.last is None
    history = _history(*_RUN)
    history.add(Event(EventKind.EVALUATION, "evaluator", 1, {"version": 1, "metrics": {"accuracy": 0.1}}))
    assert history.scores.last is not None
    assert history.scores.last.metrics == {"accuracy": 0.1}
    assert history.sites.versions() == _history(*_RUN).sites.versions()


def test_the_order_and_repeats_make_no_difference() -> None:
    expected = _history(*_RUN).sites.summary()
    for cut in range(len(_RUN)):
        assert _history(*_RUN[cut:], *reversed(_RUN)).sites.summary() == expected


def test_a_sites_first_report_on_a_version_counts() -> None:
    history = _history(*_RUN, _measured("a", 2, 1.0, 30))
    assert history.sites.summary() == _history(*_RUN).sites.summary()


def test_a_name_that_contributes_nothing_is_listed_and_does_not_count() -> None:
    history = _history(*_RUN, *(_measured(f"forged{number}", 2, 1.0) for number in range(100)))
    assert history.sites.summary() == _history(*_RUN).sites.summary()
    assert len(history.sites) == 103
    history.add(_folded("forged7"))
    assert history.sites.versions()[-1].sites == 3


def test_forged_names_keep_no_site_out() -> None:
    known = {"a", "b"}
    sites = Sites(known.__contains__, limit=10, site_limit=5)
    for number in range(50):
        sites.add(f"forged{number}", 1, 0, SiteReport(1, {"loss": 0.0}))
    for site in ("a", "b"):
        sites.add(site, 1, 0, SiteReport(1, {"loss": 2.0}))
    assert len(sites) == 5
    (scores,) = sites.versions()
    assert (scores.sites, scores.metrics["loss"].mean) == (2, 2.0)


def test_it_is_bounded_however_many_versions_sites_and_names_there_are() -> None:
    sites = Sites(lambda _: True, limit=20, site_limit=100)
    for version in range(500):
        for site in range(20):
            metrics = {f"m{version}-{number}": 1.0 for number in range(60)} | {"loss": float(version)}
            sites.add(f"s{site}", version, version, SiteReport(5, metrics))
    versions = sites.versions()
    assert len(versions) <= 20 + 64 + 1
    assert [one.version for one in versions] == sorted({one.version for one in versions})
    assert versions[-1].version == 499
    assert versions[-1].metrics["loss"].mean == 499
    assert all(len(one.metrics) <= 16 for one in versions)
    assert len([*next(iter(sites)).points]) <= 201


def test_the_runs_summary_has_it() -> None:
    told = _history(*_RUN).summary()["sites"]
    assert isinstance(told, dict)
    assert told["version"] == 2
    assert told["metrics"]["accuracy"]["worst"] == "a"


def _own(site: str, trainer: str, version: int, accuracy: float) -> Event:
    data = {
        "client_id": site,
        "version": version,
        "metrics": {"accuracy": accuracy},
        "num_examples": 10,
        "trained_by": trainer,
        "since": 0,
    }
    return Event(EventKind.EVALUATION, "client", 1000 + version, data)


def test_models_against_sites() -> None:
    history = _history(*_RUN, _own("a", "a", 2, 0.45), _own("b", "b", 2, 0.6), _own("b", "a", 2, 0.3))
    history.add(_own("a", "a", 1, 0.1))  # late
    assert history.sites.summary() == _history(*_RUN).sites.summary()
    table = model_table(history)
    assert table is not None
    assert (table.metric, table.sites) == ("accuracy", ["a", "b", "c"])
    assert [(row.trained_by, row.since, row.values) for row in table.rows] == [
        (None, None, [0.6, None, 0.9]),
        ("a", 0, [0.45, 0.3, None]),
        ("b", 0, [None, 0.6, None]),
    ]
    assert model_table(_history(*_RUN)) is None


def test_a_flood_of_models_is_bounded() -> None:
    history = _history(*_RUN, *(_own("a", f"m{number}", 2, 1.0) for number in range(1000)))
    table = model_table(history)
    assert table is not None
    assert len(table.rows) <= 41
    assert len(history.sites.trainers()) <= 64


def test_as_tables_they_are_apart_from_an_evaluators() -> None:
    tables = Tables()
    central = Event(EventKind.EVALUATION, "evaluator", 1, {"version": 1, "metrics": {"accuracy": 0.1}})
    for event in (*_RUN, central, _own("a", "a", 2, 0.45)):
        tables.add(event)
    assert [row["accuracy"] for row in tables.evaluations] == [0.1]
    assert [(row["client_id"], row["version"], row.get("trained_by")) for row in tables.site_evaluations] == [
        ("a", 1, None),
        ("b", 1, None),
        ("c", 1, None),
        ("a", 2, None),
        ("b", 2, None),
        ("a", 2, "a"),
    ]

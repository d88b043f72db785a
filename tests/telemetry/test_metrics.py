"""Metrics: what each event counts as, and that what the log may hold besides cannot break or swell them."""

import re

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llmos_stream.telemetry.event_metrics import EventMetrics
from llmos_stream.telemetry.site_metrics import SiteMetrics
from llmos_stream.types import Event, EventKind


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> EventMetrics:
    return EventMetrics("t", registry)


def _event(kind: EventKind, **data: object) -> Event:
    return Event(kind, "test", 0, data)


def _samples(registry: CollectorRegistry) -> dict[str, float]:
    lines = generate_latest(registry).decode().splitlines()
    found = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in found if float(value) and not re.search("_created|_bucket", name)}


def test_a_run_in_numbers(metrics: EventMetrics, registry: CollectorRegistry) -> None:
    sent = {"codec": "int8", "raw_bytes": 400, "sent_bytes": 100, "train_seconds": 2.0, "encode_seconds": None}
    for event in (
        _event(EventKind.CLIENT_JOINED, client_id="a"),
        _event(EventKind.UPDATE_SENT, client_id="a", **sent),
        _event(EventKind.UPDATE_SENT, client_id="a", **sent),
        _event(EventKind.UPDATE_FOLDED, client_id="a", staleness=3),
        _event(EventKind.UPDATE_DUPLICATE, client_id="a"),
        _event(EventKind.UPDATE_REJECTED, client_id="a", reason="too_stale"),
        _event(
            EventKind.VERSION_PUBLISHED,
            version=7,
            payload_bytes=50,
            raw_bytes=400,
            fold_seconds=0.5,
            lag=9,
            pace_seconds=1.5,
        ),
        _event(EventKind.EVALUATION, version=7, metrics={"accuracy": 0.75}, seconds=0.25),
        _event(EventKind.CLIENT_LEFT, client_id="a"),
        _event(EventKind.RUN_FINISHED, version=7),
    ):
        metrics.observe(event)
    assert _samples(registry) == {
        "t_client_joins_total": 1,
        "t_client_leaves_total": 1,
        't_updates_total{verdict="sent"}': 2,
        't_updates_total{verdict="folded"}': 1,
        't_updates_total{verdict="duplicate"}': 1,
        't_updates_total{verdict="rejected"}': 1,
        't_updates_rejected_total{reason="too_stale"}': 1,
        't_update_raw_bytes_total{codec="int8"}': 800,
        't_update_sent_bytes_total{codec="int8"}': 200,
        "t_update_train_seconds_count": 2,
        "t_update_train_seconds_sum": 4,
        "t_update_staleness_count": 1,
        "t_update_staleness_sum": 3,
        "t_versions_total": 1,
        "t_version": 7,
        "t_version_bytes_total": 50,
        "t_version_raw_bytes_total": 400,
        "t_fold_seconds_count": 1,
        "t_fold_seconds_sum": 0.5,
        "t_lag_records": 9,
        "t_pace_seconds": 1.5,
        "t_evaluated_version": 7,
        't_evaluation{metric="accuracy"}': 0.75,
        "t_evaluation_seconds_count": 1,
        "t_evaluation_seconds_sum": 0.25,
        "t_run_finished": 1,
    }


@pytest.mark.parametrize("kind", EventKind)
@pytest.mark.parametrize("value", [None, "x", -5, True, [1], {"a": {}}, {1: 2}])
def test_strange_data_is_left_out(metrics: EventMetrics, kind: EventKind, value: object) -> None:
    names = ("raw_bytes", "sent_bytes", "codec", "reason", "staleness", "version", "metrics", "seconds", "lag")
    metrics.observe(_event(kind))
    metrics.observe(_event(kind, **dict.fromkeys(names, value)))


def test_labels_come_from_closed_sets(metrics: EventMetrics, registry: CollectorRegistry) -> None:
    for number in range(100):
        metrics.observe(_event(EventKind.UPDATE_REJECTED, reason=f"made up {number}"))
        metrics.observe(_event(EventKind.UPDATE_SENT, codec=f"made up {number}", sent_bytes=1))
        metrics.observe(_event(EventKind.EVALUATION, metrics={f"made up {number}": 1.0}))
    found = _samples(registry)
    assert found['t_updates_rejected_total{reason="other"}'] == 100
    assert found['t_update_sent_bytes_total{codec="other"}'] == 100
    assert len([name for name in found if name.startswith("t_evaluation{")]) == 32


def test_a_collapse_counts_until_a_newer_version_is_good(metrics: EventMetrics, registry: CollectorRegistry) -> None:
    def collapsed() -> float:
        return _samples(registry).get("t_model_collapsed", 0.0)

    def evaluated(version: int, **found: float | None) -> float:
        metrics.observe(_event(EventKind.EVALUATION, version=version, metrics=found))
        return collapsed()

    assert evaluated(3, loss=1.0) == 0
    metrics.observe(_event(EventKind.MODEL_COLLAPSED, version=4, limit=3.0, loss=None))
    assert collapsed() == 1
    assert [evaluated(3, loss=1.0), evaluated(5, loss=None), evaluated(6, accuracy=0.5), evaluated(7, loss=4.0)] == [
        1
    ] * 4
    assert evaluated(8, loss=2.0) == 0


def test_a_run_that_goes_on_has_not_finished(metrics: EventMetrics, registry: CollectorRegistry) -> None:
    metrics.observe(_event(EventKind.RUN_FINISHED, version=7))
    metrics.observe(_event(EventKind.RUN_RESUMED, version=7))
    assert _samples(registry).get("t_run_finished", 0.0) == 0


def _site(client: str, version: int, **metrics: float | None) -> Event:
    data = {"client_id": client, "version": version, "metrics": metrics, "num_examples": 40, "seconds": 0.5}
    return Event(EventKind.EVALUATION, "client", 0, data)


def test_what_sites_measured_stands_apart_from_the_evaluators(
    metrics: EventMetrics, registry: CollectorRegistry
) -> None:
    metrics.observe(_event(EventKind.EVALUATION, version=3, metrics={"accuracy": 0.75}))
    metrics.observe(_site("a", 4, accuracy=0.5, loss=2.0))
    metrics.observe(_site("a", 3, accuracy=0.1))  # late
    found = _samples(registry)
    assert found["t_evaluated_version"] == 3
    assert found['t_evaluation{metric="accuracy"}'] == 0.75
    assert found['t_site_evaluation{client_id="a",metric="accuracy"}'] == 0.5
    assert found['t_site_evaluation{client_id="a",metric="loss"}'] == 2
    assert found['t_site_evaluated_version{client_id="a"}'] == 4
    assert found['t_site_validation_examples{client_id="a"}'] == 40
    metrics.observe(_site("a", 5, accuracy=0.6, loss=None))
    assert not [name for name in _samples(registry) if name.startswith("t_site_evaluation{") and "loss" in name]


def test_names_of_sites_and_metrics_make_no_series_without_end(registry: CollectorRegistry) -> None:
    sites = SiteMetrics("t", registry, max_sites=3)
    for number in range(50):
        sites.observe(_site(f"s{number}", 1, **{f"m{number}-{other}": 1.0 for other in range(40)}, loss=1.0))
    found = [name for name in _samples(registry) if name.startswith("t_site")]
    assert len([name for name in found if name.startswith("t_site_evaluated_version")]) == 3
    assert len(found) <= 3 * (2 + 16)
    assert 't_site_evaluation{client_id="s49",metric="loss"}' in found

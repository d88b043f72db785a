"""The metrics by Prometheus's own conventions, as its own tool sees them."""

import re
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from llmos_stream.runtime import Health
from llmos_stream.telemetry.federation_metrics import FederationMetrics
from llmos_stream.types import Event, EventKind
from llmos_stream.web.health_endpoints import HealthEndpoints
from tests.monitoring import exported
from tests.monitoring.tools import promtool

SENT = {"codec": "int8", "raw_bytes": 400, "sent_bytes": 100, "train_seconds": 2.0, "encode_seconds": 0.1}
EVENTS = (
    Event(EventKind.CLIENT_JOINED, "client", 1_000, {"client_id": "a"}),
    Event(EventKind.UPDATE_SENT, "client", 2_000, {"client_id": "a", **SENT}),
    Event(EventKind.UPDATE_FOLDED, "aggregator", 2_000, {"client_id": "a", "staleness": 3}),
    Event(EventKind.UPDATE_REJECTED, "aggregator", 2_000, {"client_id": "a", "reason": "too_stale"}),
    Event(EventKind.UPDATE_REJECTED, "client", 2_000, {"client_id": "a", "reason": "too_stale"}),
    Event(EventKind.EVALUATION, "evaluator", 3_000, {"version": 1, "metrics": {"accuracy": 0.5}, "seconds": 0.1}),
)


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


def test_promtool_has_nothing_to_say_about_any_metric(registry: CollectorRegistry, tmp_path: Path) -> None:
    counted = FederationMetrics(registry)
    for event in EVENTS:
        counted.observe(event)
    everything = exported.everything(registry)
    operations = HealthEndpoints(Health(["broker"]), {"role": "x", "version": "1"}, everything, {"spool": tmp_path})
    with operations.exported():
        text = generate_latest(everything).decode()
    assert 'llmos_disk_free_bytes{folder="spool"}' in text
    done = promtool("check", "metrics", text=text)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_promtool_finds_what_is_not_by_the_conventions() -> None:
    done = promtool("check", "metrics", text="# HELP llmos_bad x\n# TYPE llmos_bad counter\nllmos_bad 1\n")
    assert done.returncode != 0
    assert "_total" in done.stdout + done.stderr


def test_our_names_have_one_prefix_and_their_helps_are_sentences(registry: CollectorRegistry) -> None:
    for family in exported.everything(registry).collect():
        assert family.name.startswith(("llmos_", "process_", "python_"))
        if family.name.startswith("llmos_"):
            assert re.fullmatch(r"[A-Z1].*\.", family.documentation), family.name


def test_what_a_client_refuses_itself_is_not_in_quarantine(registry: CollectorRegistry) -> None:
    counted = FederationMetrics(registry)
    for event in EVENTS:
        counted.observe(event)
    sample = registry.get_sample_value
    assert sample("llmos_federation_updates_rejected_total", {"reason": "too_stale"}) == 2
    assert sample("llmos_federation_quarantined_updates_total", {"reason": "too_stale"}) == 1


def test_the_monitor_knows_who_takes_part_and_when_each_was_heard(registry: CollectorRegistry) -> None:
    counted, sample = FederationMetrics(registry), registry.get_sample_value
    heard = "llmos_federation_client_heard_timestamp_seconds"
    counted.observe(Event(EventKind.CLIENT_JOINED, "client", 1_000, {"client_id": "a"}))
    counted.observe(Event(EventKind.UPDATE_SENT, "client", 7_500, {"client_id": "a", **SENT}))
    counted.observe(Event(EventKind.UPDATE_SENT, "client", 8_000, {"client_id": "b", **SENT}))
    counted.observe(Event(EventKind.UPDATE_FOLDED, "aggregator", 9_000, {"client_id": "a", "staleness": 0}))
    assert sample("llmos_federation_clients") == 2
    assert sample(heard, {"client_id": "a"}) == 7.5
    counted.observe(Event(EventKind.CLIENT_LEFT, "client", 9_500, {"client_id": "a"}))
    counted.observe(Event(EventKind.CLIENT_LEFT, "client", 9_500, {"client_id": "never heard"}))
    assert sample("llmos_federation_clients") == 1
    assert sample(heard, {"client_id": "a"}) is None


def test_clients_without_number_make_no_series_without_number(registry: CollectorRegistry) -> None:
    counted = FederationMetrics(registry, max_clients=3)
    for number in range(10):
        counted.observe(Event(EventKind.CLIENT_JOINED, "client", number, {"client_id": f"{number}" * 500}))
    counted.observe(Event(EventKind.CLIENT_JOINED, "client", 1, {"client_id": 5}))
    text = generate_latest(registry).decode()
    assert re.findall(r'heard_timestamp_seconds\{client_id="(\d+)"\}', text) == ["7" * 128, "8" * 128, "9" * 128]
    assert registry.get_sample_value("llmos_federation_clients") == 3


def test_what_may_go_wrong_is_counted_from_nought(registry: CollectorRegistry) -> None:
    """A counter that appears with its first error has no rate then."""
    sample = exported.everything(registry).get_sample_value
    assert sample("llmos_inference_answers_total", {"status": "503"}) == 0
    assert sample("llmos_quarantined_updates_total", {"reason": "wrong_digest"}) == 0
    assert sample("llmos_updates_total", {"verdict": "rejected"}) == 0

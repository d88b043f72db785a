"""Services that trace: one collector, and one way through all of them."""

from pathlib import Path

import pytest

from tests.monitoring.collector import Collector, collector
from tests.services.test_services import Serve, _until, serve

__all__ = ["serve"]


def _ways(collected: Collector) -> set[tuple[str, ...]]:
    """Of each span the services and names from it back to where its trace begins, as far as they are there."""
    by_id = {span.span_id: (service, span) for service, span in list(collected.spans)}
    ways = set()
    for service, span in list(by_id.values()):
        way, at = [f"{service}: {span.name}"], span
        while at.parent_span_id in by_id:
            name, at = by_id[at.parent_span_id]
            way.append(f"{name}: {at.name}")
        ways.add(tuple(way))
    return ways


@pytest.mark.full
@pytest.mark.kafka
def test_one_trace_leads_through_all_services(
    serve: Serve, on_kafka: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = (
        "llmos-aggregator: aggregator.version",
        "llmos-aggregator: aggregator.fold",
        "llmos-client: client.publish",
        "llmos-client: client.update",
    )
    with collector() as collected:
        monkeypatch.setenv("LLMOS_TRACING__ENDPOINT", str(collected.settings.endpoint))
        services = [serve(name) for name in ("aggregator", "client", "evaluator")]
        for wanted in (made, ("llmos-evaluator: evaluator.evaluate", *made), ("llmos-client: version.apply", *made)):
            _until(lambda wanted=wanted: wanted in _ways(collected), f"{wanted}: {collected.names}")  # type: ignore[misc]
        assert [service.stop().status for service in services] == [0, 0, 0]


@pytest.mark.full
@pytest.mark.kafka
def test_a_service_whose_collector_is_gone_works_and_stops_in_time(
    serve: Serve, on_kafka: str, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_TRACING__ENDPOINT", f"http://{nobody}/v1/traces")
    aggregator, client = serve("aggregator"), serve("client")
    _until(lambda: (aggregator.metric("llmos_version") or 0.0) >= 2, "two versions")
    for service in (client, aggregator):
        done = service.stop()
        assert done.status == 0, done
        assert done.err.count("spans are lost") <= 1
        assert all(line.startswith("{") for line in done.err.splitlines() if line)  # JSON for machines, all of it

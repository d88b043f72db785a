"""A real Prometheus scrapes a running federation and answers every query of the dashboards."""

import asyncio
import html
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.runtime import BROKER, Health, Shutdown, run_all, run_while
from llmos_stream.testing.language_models import write_tiny_model
from llmos_stream.web.health_endpoints import HealthEndpoints, serve_health_endpoints
from tests.monitoring.dashboards import DASHBOARDS, Query, alerts, panels, queries
from tests.monitoring.draw import NO_DATA, Span, draw
from tests.monitoring.federation import run_texts, run_whole, whole_settings
from tests.monitoring.prometheus import Prometheus, running
from tests.roles.aids import delta_of, update
from tests.training.llm.aids import SENTENCES

SCRAPE_SECONDS = 0.5
PATIENCE_SECONDS = 60.0
JOBS = ("aggregator", "archiver", "client", "evaluator", "inference", "monitor")
WITHOUT_DATA = {"Begun again after trouble"}
"""Panels that a run without trouble leaves empty; what this process did before the run counts, too."""


async def _until(condition: Callable[[], bool], what: Callable[[], object]) -> None:
    """Ask in a thread, again and again, while the federation goes on."""
    deadline = asyncio.get_running_loop().time() + PATIENCE_SECONDS
    while not await asyncio.to_thread(condition):
        assert asyncio.get_running_loop().time() < deadline, f"not after {PATIENCE_SECONDS:g} s: {what()}"


class _Asked:
    """Queries that have had no answer yet."""

    def __init__(self, prometheus: Prometheus, asked: list[Query]) -> None:
        self._prometheus = prometheus
        self.left = asked

    def all_answered(self) -> bool:
        """Raises ValueError when Prometheus cannot answer one."""
        self.left = [query for query in self.left if not _data(self._prometheus, query)]
        return not self.left


def _data(prometheus: Prometheus, query: Query) -> bool:
    return any(series["value"][1] != "NaN" for series in prometheus.query(query.expr))


@pytest.mark.full
@pytest.mark.timeout(240)
async def test_every_query_of_the_dashboards_is_answered(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    write_tiny_model(tmp_path / "tiny", SENTENCES)
    settings, shutdown, health = whole_settings("watched", tmp_path / "models"), Shutdown(), Health([BROKER])
    health.attach()
    settings = settings.model_copy(update={"operations": settings.operations.model_copy(update={"port": 0})})
    facts = {"role": "all", "federation": "watched", "version": "1"}
    operations = HealthEndpoints(health, facts, folders={"spool": tmp_path})
    async with MemoryBroker() as broker:
        await broker.create_topics(Topics("watched").specs(settings.topics))
        with (
            serve_health_endpoints(settings.operations, operations) as port,
            running(tmp_path, {job: [port or 0] for job in JOBS}, SCRAPE_SECONDS) as prometheus,
        ):

            async def look() -> None:
                try:
                    await _until(lambda: _folded(prometheus) > 0, lambda: "an update is folded")
                    async with broker.producer() as producer:  # of another model: it is refused
                        await producer.send_all("watched.updates", update(delta_of(1.0)), key=b"a")
                    every = [query for path in DASHBOARDS for query in queries(path, "10s")]
                    asked = _Asked(prometheus, [query for query in every if query.panel not in WITHOUT_DATA])
                    await _until(asked.all_answered, lambda: asked.left)
                    await asyncio.to_thread(_run_through, prometheus)
                    await asyncio.to_thread(_look_at, prometheus)
                finally:
                    shutdown.request()

            whole, texts = run_whole(broker, settings, shutdown), run_texts(broker, tmp_path / "tiny", shutdown)
            await run_while(run_all(look(), whole, texts), health.beat())


def _folded(prometheus: Prometheus) -> float:
    found = prometheus.query('sum(llmos_updates_total{job="aggregator", verdict="folded"})')
    return float(found[0]["value"][1]) if found else 0.0


def _run_through(prometheus: Prometheus) -> None:
    """No query is one that Prometheus cannot answer; its rules and its targets are as good."""
    for path in DASHBOARDS:
        for query in queries(path, "10s"):
            prometheus.query(query.expr)
    assert {rule["name"] for rule in prometheus.rules()} == {rule["alert"] for rule in alerts()}
    assert {rule["health"] for rule in prometheus.rules()} <= {"ok", "unknown"}  # unknown: not evaluated yet
    assert {target["labels"]["job"] for target in prometheus.targets()} == set(JOBS)


def _look_at(prometheus: Prometheus) -> None:
    """What a person sees: every panel of every dashboard, and something in each."""
    now = time.time()
    for path in DASHBOARDS:
        page = draw(path, prometheus, Span(now - 20, now, 1.0))
        for panel in panels(path):
            (box,) = re.findall(rf"<h3 [^>]*>{re.escape(html.escape(panel['title']))}</h3>(.{{20}})", page, re.DOTALL)
            assert NO_DATA not in box or panel["title"] in WITHOUT_DATA, panel["title"]

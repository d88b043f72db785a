"""What operators ask a process over HTTP: `/health`, `/ready` and `/metrics`.

Threads answer, so that a process whose event loop hangs can still say so. It is plain HTTP without authentication,
for the inside of a cluster: the answers hold numbers and names of conditions only.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http import HTTPStatus
from pathlib import Path
from shutil import disk_usage
from threading import Thread
from typing import Any

import orjson
from prometheus_client import REGISTRY, CollectorRegistry, make_wsgi_app
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llmos_stream.config import OperationsSettings
from llmos_stream.runtime.health import Health
from llmos_stream.web.addresses import ListenAddress, listening, shown
from llmos_stream.web.threaded import ThreadedServer

logger = logging.getLogger(__name__)

_PATHS = ("/health", "/ready", "/metrics")
_REQUEST_SECONDS = 10.0  # of a connection, from its first byte to the last byte of its answer


class HealthEndpoints(Collector):
    """The WSGI application, and the process's own facts and conditions among the metrics that it shows.

    `folders` are those that the process writes to, by purpose; the metrics show how full their disks are.
    """

    def __init__(
        self,
        health: Health,
        facts: Mapping[str, str],
        registry: CollectorRegistry = REGISTRY,
        folders: Mapping[str, Path] | None = None,
    ) -> None:
        self._health = health
        self._metrics = make_wsgi_app(registry)
        self._facts = dict(facts)
        self._registry = registry
        self._folders = dict(folders or {})

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        path = environ.get("PATH_INFO")
        if environ.get("REQUEST_METHOD") not in ("GET", "HEAD"):
            return _answer(start_response, HTTPStatus.METHOD_NOT_ALLOWED, {"error": "only GET is answered here"})
        if path == "/metrics":
            answer: Iterable[bytes] = self._metrics(environ, start_response)
            return answer
        if path == "/health":
            alive = self._health.alive
            body = {"alive": True} if alive else {"alive": False, "error": "the event loop does not come round"}
            return _answer(start_response, _status(alive), body)
        if path == "/ready":
            ready = self._health.ready
            return _answer(start_response, _status(ready), {"ready": ready, "missing": self._health.missing})
        return _answer(start_response, HTTPStatus.NOT_FOUND, {"error": f"there is {', '.join(_PATHS)}"})

    def collect(self) -> Iterator[Metric]:
        about = GaugeMetricFamily("llmos_process_info", "What runs here.", labels=list(self._facts))
        about.add_metric(list(self._facts.values()), 1)
        yield about
        conditions = GaugeMetricFamily("llmos_condition_met", "Whether what is needed is there.", labels=["condition"])
        for name, there in self._health.conditions.items():
            conditions.add_metric([name], there)
        yield conditions
        free = GaugeMetricFamily("llmos_disk_free_bytes", "Room where this process writes.", labels=["folder"])
        size = GaugeMetricFamily("llmos_disk_size_bytes", "Size of these file systems.", labels=["folder"])
        for name, folder in self._folders.items():
            with suppress(OSError):  # not there yet, or not any more
                usage = disk_usage(folder)
                free.add_metric([name], usage.free)
                size.add_metric([name], usage.total)
        yield free
        yield size

    @contextmanager
    def exported(self) -> Iterator[None]:
        """Export the process's own conditions as metrics meanwhile."""
        self._registry.register(self)
        try:
            yield
        finally:
            self._registry.unregister(self)


@contextmanager
def serve_health_endpoints(
    settings: OperationsSettings, endpoints: HealthEndpoints, request_seconds: float = _REQUEST_SECONDS
) -> Iterator[int | None]:
    """Answer on the port of the settings meanwhile, and yield it; yield None where none is set.

    A connection ends after `request_seconds`, even if the answer is not complete.

    Raises:
        ConfigError: The port cannot be opened.
    """
    if settings.port is None:
        yield None
        return
    with (
        listening(ListenAddress("operations", settings.host, settings.port)) as listener,
        ThreadedServer(listener, request_seconds) as server,
        endpoints.exported(),
    ):
        server.set_app(endpoints)
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.1}, name="operations", daemon=True)
        thread.start()
        port: int = listener.getsockname()[1]
        logger.info("answering %s on %s", ", ".join(_PATHS), shown(settings.host, port))
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()


def _status(good: bool) -> HTTPStatus:
    return HTTPStatus.OK if good else HTTPStatus.SERVICE_UNAVAILABLE


def _answer(start_response: Any, status: HTTPStatus, said: Mapping[str, object]) -> list[bytes]:
    body = orjson.dumps(said)
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
    start_response(f"{status.value} {status.phrase}", headers)
    return [body]

"""The containers' processes on a real Kafka: what they answer to operators, and how they end."""

import json
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.cli.aids import PATIENCE_SECONDS, Done, Running
from tests.conftest import KafkaNode

ROLES = ("aggregator", "client", "evaluator", "monitor")
_OTHERS = ("archiver", "client", "evaluator", "inference", "monitor")


class Service:
    """A service in a process of its own, asked over HTTP."""

    def __init__(self, name: str, folder: Path, *arguments: str, new: bool) -> None:
        self.name = name
        self.process = Running(arguments, folder, f"services.{name}", new=new)
        self._port = self.port("answering /health")

    def port(self, wanted: str) -> int:
        """The port in the next line of the log that contains `wanted`."""
        return int(json.loads(self.process.line("err", wanted))["message"].rpartition(":")[2])

    def ask(self, path: str) -> tuple[int, str]:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            connection.close()

    def metric(self, name: str) -> float | None:
        """The value of a sample, None while there is none."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("/metrics")[1], re.MULTILINE)
        return float(found[1]) if found else None

    def ready(self) -> bool:
        return self.ask("/ready")[0] == 200

    def stop(self) -> Done:
        self.process.signal(signal.SIGTERM)
        return self.process.wait()


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline, never = time.monotonic() + PATIENCE_SECONDS, threading.Event()
    while not condition():
        assert time.monotonic() < deadline, f"not after {PATIENCE_SECONDS:g} s: {what}"
        never.wait(0.05)


Serve = Callable[..., Service]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Start a service on a free port of the loopback; none outlives the test."""
    monkeypatch.setenv("LLMOS_OPERATIONS__HOST", "127.0.0.1")
    monkeypatch.setenv("LLMOS_OPERATIONS__PORT", "0")
    monkeypatch.setenv("LLMOS_DASHBOARD__HOST", "127.0.0.1")
    monkeypatch.setenv("LLMOS_DASHBOARD__PORT", "0")
    monkeypatch.setenv("LLMOS_CLIENT__WAIT_SECONDS", "0.2")
    monkeypatch.setenv("LLMOS_AGGREGATION__BUFFER_SIZE", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    started: list[Service] = []

    def run(name: str, *arguments: str, new: bool = False) -> Service:
        started.append(Service(name, tmp_path, *arguments, new=new))
        return started[-1]

    yield run
    for service in started:
        service.process.end()


@pytest.mark.kafka
def test_a_federation_of_services(serve: Serve, on_kafka: str) -> None:
    services = {name: serve(name) for name in ROLES}
    for name, service in services.items():
        _until(service.ready, f"{name} is ready")
        assert service.ask("/health")[0] == 200
        about = f'llmos_process_info{{federation="{on_kafka}",role="{name}",version='
        assert about in service.ask("/metrics")[1]

    def reached(name: str, metric: str, least: float) -> Callable[[], bool]:
        return lambda: (services[name].metric(metric) or 0.0) >= least

    for name, metric, least in (
        ("aggregator", "llmos_version", 2),
        ("aggregator", 'llmos_updates_total{verdict="folded"}', 2),
        ("client", 'llmos_updates_total{verdict="sent"}', 2),
        ("client", 'llmos_update_sent_bytes_total{codec="int8"}', 1000),
        ("evaluator", 'llmos_evaluation{metric="accuracy"}', 0.01),
        ("monitor", "llmos_federation_version", 2),
        ("monitor", 'llmos_federation_evaluation{metric="accuracy"}', 0.01),
        ("monitor", "llmos_federation_client_joins_total", 1),
    ):
        _until(reached(name, metric, least), f"{metric} of {name} is {least}")
    for name in ("client", "aggregator", "evaluator", "monitor"):
        done = services[name].stop()
        assert done.status == 0, done
        lines = [line for line in done.err.splitlines() if line]
        assert any("SIGTERM: stopping" in line for line in lines)
        for line in lines:
            assert {"time", "level", "message"} <= json.loads(line).keys()


def _http(port: int, method: str, path: str, body: object = None, token: str = "") -> tuple[int, Any]:
    headers = {"content-type": "application/json", "authorization": f"Bearer {token}"} if token else {}
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, None if body is None else json.dumps(body), headers)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
def test_predictions_go_on_while_versions_come_and_without_a_broker(
    serve: Serve, on_kafka: str, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = kafka.own()
    monkeypatch.setenv("LLMOS_INFERENCE__HOST", "127.0.0.1")
    monkeypatch.setenv("LLMOS_INFERENCE__PORT", "0")
    monkeypatch.setenv("LLMOS_RUNTIME__STOP_SECONDS", "20")
    inference = serve("inference")
    port = inference.port("predicting on")
    assert _http(port, "POST", "/v1/predict", {"inputs": [[0.0] * 16]})[0] == 503  # there is no version yet
    assert not inference.ready()
    services = [serve("aggregator"), serve("client")]
    _until(inference.ready, "inference has a version")
    seen = set()

    def two_versions_have_answered() -> bool:
        status, said = _http(port, "POST", "/v1/predict", {"inputs": [[0.0] * 16, [1.0] * 16]})
        assert status == 200, said
        assert [len(row) for row in said["outputs"]] == [4, 4]
        seen.add(said["version"])
        return len(seen) > 1

    _until(two_versions_have_answered, "two versions have answered")
    assert _http(port, "GET", "/v1/models")[1]["serving"] >= max(seen)
    assert (inference.metric("llmos_inference_version") or 0) >= max(seen)
    node.kill()
    try:
        assert two_versions_have_answered()
        assert inference.ready()
        assert inference.stop().status == 0  # nobody who is gone holds it up
    finally:
        node.start()
    assert [service.stop().status for service in services] == [0, 0]


@pytest.mark.full
@pytest.mark.kafka
def test_the_monitor_has_the_live_page(serve: Serve, on_kafka: str) -> None:
    monitor = serve("monitor")
    services = [monitor, serve("aggregator"), serve("client")]
    port = monitor.port("the live page is on")

    def a_version_and_what_it_is_made_of() -> bool:
        state = _http(port, "GET", "/api/state")[1]
        return len(state["versions"]) > 1 and state["versions"][1]["contributions"] > 0

    _until(a_version_and_what_it_is_made_of, "it knows a version")
    status, version = _http(port, "GET", "/api/versions/1")
    assert status == 200
    assert version["contributions"][0]["offset"] >= 0
    assert _http(port, "POST", "/api/pause", {})[0] == 403  # no token is set
    assert [service.stop().status for service in reversed(services)] == [0, 0, 0]


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
@pytest.mark.timeout(300)
def test_a_service_without_its_broker_is_alive_and_not_ready(serve: Serve, on_kafka: str, kafka: KafkaNode) -> None:
    node = kafka.own()
    aggregator, monitor = serve("aggregator"), serve("monitor")
    for service in (aggregator, monitor):
        _until(service.ready, f"{service.name} is ready")
    node.kill()
    try:
        for service in (aggregator, monitor):
            _until(lambda service=service: not service.ready(), f"{service.name} misses its broker")  # type: ignore[misc]
            assert "broker" in json.loads(service.ask("/ready")[1])["missing"]
            assert service.ask("/health")[0] == 200
    finally:
        node.start()
    for service in (aggregator, monitor):
        _until(service.ready, f"{service.name} has found its broker again")


def test_a_service_started_before_its_broker_waits_and_can_be_stopped(
    serve: Serve, nobody: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", nobody)
    monkeypatch.setenv("LLMOS_BROKER__CONNECT_TIMEOUT_SECONDS", "0.3")
    monkeypatch.setenv("LLMOS_DASHBOARD__TOKEN", "let-me-in")
    monitor = serve("monitor", new=True)
    page = monitor.port("the live page is on")
    _until(lambda: "no Kafka answers" in monitor.ask("/ready")[1], "it says what is missing")
    assert monitor.ask("/health")[0] == 200
    status, state = _http(page, "GET", "/api/state")
    assert (status, state["headline"]["status"]) == (200, "unreached")
    status, said = _http(page, "POST", "/api/pause", {}, "let-me-in")
    assert (status, said["detail"]) == (503, "the broker has not answered yet; try again")
    assert _http(page, "GET", "/api/versions/1")[0] == 503
    assert monitor.stop().status == 0


@pytest.mark.kafka
def test_an_archiver_is_ready_while_its_store_is(
    serve: Serve, on_kafka: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aggregator = serve("aggregator")
    _until(aggregator.ready, "there are topics")
    place = tmp_path / "models"
    place.write_text("a file where a folder should be")
    monkeypatch.setenv("LLMOS_REGISTRY__URL", f"file://{place}")
    archiver = serve("archiver", "--registry.every", "1")
    _until(lambda: "registry at" in archiver.ask("/ready")[1], "it says that its store does not answer")
    assert list(json.loads(archiver.ask("/ready")[1])["missing"]) == ["store"]
    place.unlink()
    _until(archiver.ready, "the store is there")
    _until((place / on_kafka / "00000000" / "version.json").is_file, "version 0 is archived")
    done = archiver.stop()
    assert (done.status, json.loads(done.out)) == (0, {"archived": [0]})


@pytest.mark.usefixtures("serve")
@pytest.mark.parametrize("name", ["aggregator", *(pytest.param(name, marks=pytest.mark.full) for name in _OTHERS)])
def test_settings_that_make_no_sense_end_it_at_once(name: str, tmp_path: Path) -> None:
    running = Running(["--operations.port", "70000"], tmp_path, f"services.{name}", new=True)
    done = running.wait()
    assert done.status == 2
    assert "operations.port" in done.err
    running.end()

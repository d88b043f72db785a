"""What operators ask over HTTP, and that a process which hangs still answers."""

import json
import logging
import select
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from http.client import HTTPConnection

import pytest
from prometheus_client import CollectorRegistry

from llmos_stream.config import OperationsSettings
from llmos_stream.errors import ConfigError
from llmos_stream.runtime import Health
from llmos_stream.web.addresses import ListenAddress, listening
from llmos_stream.web.health_endpoints import HealthEndpoints, serve_health_endpoints
from llmos_stream.web.threaded import _MAX_CONNECTIONS

FACTS = {"role": "client", "federation": "f", "version": "1"}


@pytest.fixture
def clock() -> list[float]:
    return [0.0]


@pytest.fixture
def health(clock: list[float]) -> Health:
    return Health(["broker"], stuck_seconds=5.0, clock=lambda: clock[0])


@pytest.fixture
def port(health: Health) -> Iterator[int]:
    operations = HealthEndpoints(health, FACTS, CollectorRegistry())
    with serve_health_endpoints(OperationsSettings(port=0), operations) as port:
        assert port is not None
        yield port


def _ask(port: int, path: str, method: str = "GET", host: str = "127.0.0.1") -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=60)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


def test_ready_with_the_broker_only(port: int, health: Health) -> None:
    status, said = _ask(port, "/ready")
    assert (status, json.loads(said)) == (503, {"ready": False, "missing": {"broker": "not yet"}})
    health.met("broker")
    status, said = _ask(port, "/ready")
    assert (status, json.loads(said)) == (200, {"ready": True, "missing": {}})
    assert _ask(port, "/health") == (200, '{"alive":true}')


def test_a_loop_that_hangs_is_told_of(port: int, clock: list[float]) -> None:
    clock[0] = 6.0
    status, said = _ask(port, "/health")
    assert (status, json.loads(said)["alive"]) == (503, False)
    assert _ask(port, "/ready")[0] == 503


def test_metrics_tell_what_runs_here(port: int, health: Health) -> None:
    status, said = _ask(port, "/metrics")
    assert status == 200
    assert 'llmos_process_info{federation="f",role="client",version="1"} 1.0' in said
    assert 'llmos_condition_met{condition="broker"} 0.0' in said
    health.met("broker")
    assert 'llmos_condition_met{condition="broker"} 1.0' in _ask(port, "/metrics")[1]


def test_other_questions_are_turned_down(port: int) -> None:
    status, said = _ask(port, "/")
    assert (status, json.loads(said)) == (404, {"error": "there is /health, /ready, /metrics"})
    assert _ask(port, "/metrics", "POST")[0] == 405
    assert _ask(port, "/health", "HEAD") == (200, "")


def test_rubbish_and_silence_hold_nobody_up(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port)) as silent, socket.create_connection(("127.0.0.1", port)) as rude:
        rude.sendall(b"\x00\xff rubbish\r\n\r\n")
        assert silent.fileno() >= 0
        assert _ask(port, "/health")[0] == 200


@pytest.mark.parametrize("half", [b"", b"GET /hea", b"GET /health HTTP/1.0\r\nx: "])
def test_who_brings_half_a_request_is_let_go(health: Health, half: bytes) -> None:
    operations = HealthEndpoints(health, FACTS, CollectorRegistry())
    with serve_health_endpoints(OperationsSettings(port=0), operations, request_seconds=0.3) as port:
        assert port is not None
        with socket.create_connection(("127.0.0.1", port), timeout=60) as slow:
            slow.sendall(half)
            slow.settimeout(0.02)
            while True:  # byte by byte, which gains no time
                try:
                    said = slow.recv(1 << 16)
                except TimeoutError:
                    slow.sendall(half[-1:])
                    continue
                except ConnectionError:
                    break
                if not said:
                    break
            assert _ask(port, "/health")[0] == 200


def test_of_too_many_the_oldest_goes(port: int) -> None:
    with ExitStack() as stack:
        silent = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            for _ in range(_MAX_CONNECTIONS + 5)
        ]
        for connection in silent[:5]:
            assert connection.recv(1) == b""
        assert _ask(port, "/health")[0] == 200
        assert select.select(silent[-1:], [], [], 0) == ([], [], [])


def test_a_port_that_is_taken_is_named(port: int, health: Health) -> None:
    operations = HealthEndpoints(health, FACTS, CollectorRegistry())
    with (
        pytest.raises(ConfigError, match=rf"operations.port: cannot listen on 127.0.0.1:{port} \(Address already"),
        serve_health_endpoints(OperationsSettings(port=port), operations),
    ):
        pass


@pytest.mark.parametrize(
    ("host", "asked"),
    [("::1", ["::1"]), ("[::1]", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("localhost", ["127.0.0.1"])],
)
def test_it_listens_on_ipv6_too(health: Health, host: str, asked: list[str], caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    operations = HealthEndpoints(health, FACTS, CollectorRegistry())
    with serve_health_endpoints(OperationsSettings(port=0, host=host), operations) as port:
        assert port is not None
        for path in ("/health", "/metrics"):
            assert [_ask(port, path, host=where)[0] for where in asked] == [200] * len(asked)
    url = f"[{host.strip('[]')}]" if ":" in host else host
    assert f"on {url}:{port}" in caplog.text


@pytest.mark.parametrize("host", ["no-such-host.invalid", "::1::1", "256.0.0.1"])
def test_an_address_that_is_none_is_told_in_one_line(health: Health, host: str) -> None:
    operations = HealthEndpoints(health, FACTS, CollectorRegistry())
    with (
        pytest.raises(ConfigError, match=r"^operations.host, operations.port: cannot listen on .* \(.+\)$"),
        serve_health_endpoints(OperationsSettings(port=0, host=host), operations),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"^dashboard.host, dashboard.port: cannot listen on .* \(.+\)$"),
        listening(ListenAddress("dashboard", host, 0)),
    ):
        pass


@pytest.mark.parametrize("host", ["::1", "::", "localhost"])
def test_so_do_the_other_servers(host: str) -> None:
    with listening(ListenAddress("dashboard", host, 0)) as listener:
        port = listener.getsockname()[1]
        for where in ("::1",) if "1" in host else ("::1", "127.0.0.1") if host == "::" else ("127.0.0.1",):
            socket.create_connection((where, port), timeout=10).close()


def test_without_a_port_nothing_listens(health: Health) -> None:
    registry = CollectorRegistry()
    with serve_health_endpoints(OperationsSettings(), HealthEndpoints(health, FACTS, registry)) as port:
        assert port is None
        assert list(registry.collect()) == []

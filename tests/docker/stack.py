"""The stack of `docker/compose.yaml`, brought up on an engine, and what is asked of its containers."""

import os
import re
import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

import orjson

from llmos_stream.broker.local.needs import free_ports
from tests.docker.engine import Engine
from tests.docker.images import APP, KAFKA, PROMETHEUS, ROOT
from tests.docker.waiting import until

AGGREGATORS = ("aggregator-1", "aggregator-2")
ROLES = (*AGGREGATORS, "client-1", "client-2", "client-3", "evaluator", "archiver", "inference", "monitor")
WATCH = ("prometheus",) if (ROOT / "docker" / "prometheus" / "prometheus.yml").is_file() else ()
COMPOSE = ROOT / "docker" / "compose.yaml"
THREE_BROKERS = ROOT / "docker" / "compose.three-brokers.yaml"
SMALL = Path(__file__).with_name("compose.small.yaml")
PATIENCE_SECONDS = 120.0
_PORTS = (
    "KAFKA_PORT",
    "KAFKA_2_PORT",
    "KAFKA_3_PORT",
    "INFERENCE_PORT",
    "METRICS_PORT",
    "PAGE_PORT",
    "PROMETHEUS_PORT",
)
_TERM = re.compile(r"leading, term (\d+)")


@dataclass(frozen=True)
class Container:
    """What the engine knows of one."""

    id: str
    pid: int
    running: bool
    healthy: bool
    restarts: int
    status: int
    address: str


class Stack:
    """A project of compose, made of `files`."""

    def __init__(self, engine: Engine, project: str, *files: Path) -> None:
        self.engine = engine
        self._files = [word for file in files for word in ("--file", str(file))]
        self.ports = dict(zip(_PORTS, free_ports(len(_PORTS)), strict=True))
        self._project = project
        self._services: tuple[str, ...] = ()
        self._environment = {
            **{name: str(port) for name, port in self.ports.items()},
            "LLMOS_IMAGE": APP,
            "KAFKA_IMAGE": KAFKA,
            "PROMETHEUS_IMAGE": PROMETHEUS,
        }

    def compose(self, *arguments: str, seconds: float = 120.0) -> str:
        command = ("--project-name", self._project, *self._files, *arguments)
        return self.engine.compose(*command, seconds=seconds, environment=self._environment)

    def up(self, services: Sequence[str]) -> None:
        """Start them in the order of their health; returns once all are healthy."""
        self._services = tuple(services)
        wait = ("--wait", "--wait-timeout", "600")
        self.compose("up", "--detach", "--no-build", "--pull", "never", *wait, *services, seconds=300)

    def stop(self) -> None:
        self.compose("stop", seconds=180)

    def down(self) -> None:
        self.compose("down", "--volumes", "--remove-orphans", "--timeout", "10", seconds=180)

    def left(self) -> dict[str, list[str]]:
        """What the engine still has of this project, by kind."""
        label = ("--filter", f"label=com.docker.compose.project={self._project}", "--quiet")
        asked = {"container": ("ps", "--all"), "volume": ("volume", "ls"), "network": ("network", "ls")}
        return {kind: self.engine.docker(*words, *label).split() for kind, words in asked.items()}

    def look(self, service: str) -> Container:
        """The container of a service, running or not."""
        found = self.engine.inspect("container", f"{self._project}-{service}-1")
        state, networks = found["State"], found["NetworkSettings"]["Networks"]
        return Container(
            id=found["Id"],
            pid=state["Pid"],
            running=state["Running"],
            healthy=state.get("Health", {}).get("Status") == "healthy",
            restarts=found["RestartCount"],
            status=state["ExitCode"],
            address=next(iter(networks.values()))["IPAddress"],
        )

    def run_in(self, service: str, code: str) -> str:
        """What a line of Python prints in the container of a service."""
        return self.engine.docker("exec", self.look(service).id, "python", "-I", "-c", code)

    def kill(self, service: str) -> Container:
        """SIGKILL to its first process from outside, as the kernel does it when memory runs out.

        `docker kill` would count as a stop that was asked for, after which nothing is restarted.
        """
        before = self.look(service)
        assert before.running, service
        os.kill(before.pid, signal.SIGKILL)
        return before

    def back(self, service: str, before: Container) -> bool:
        """Whether the container that was `before` has been started again."""
        now = self.look(service)
        return now.running and now.pid != before.pid and now.restarts > before.restarts

    def ask(self, service: str, path: str, port: int = 8080, body: object = None) -> tuple[int, str]:
        """Status and body of an answer, asked for at the container's own address."""
        return ask(self.look(service).address, port, path, body)

    def ready(self, service: str) -> bool:
        with suppress(OSError, HTTPException):
            return self.ask(service, "/ready")[0] == 200
        return False

    def version(self) -> int:
        """The newest version that anyone who can be asked knows of; -1 while there is none."""
        found = [-1]
        with suppress(OSError, HTTPException):
            text = self.ask("monitor", "/metrics")[1]
            found += [
                int(float(value)) for value in re.findall(r"^llmos_federation_version (\S+)$", text, re.MULTILINE)
            ]
        if "inference" not in self._services:
            return max(found)
        with suppress(OSError, HTTPException):
            models = orjson.loads(self.ask("inference", "/v1/models", 8000)[1])["models"]
            found += [model["version"] for model in models]
        return max(found)

    def moves_on(self, what: str) -> None:
        """Wait for two versions more than there are: the first may have been under way."""
        version = self.version()
        until(lambda: self.version() >= version + 2, f"versions go on {what}", PATIENCE_SECONDS)

    def terms(self) -> dict[str, int]:
        """The last term in which each aggregator says that it leads; 0 for one that never did."""
        return {name: max(map(int, _TERM.findall(self.logs(name))), default=0) for name in AGGREGATORS}

    def logs(self, service: str) -> str:
        return self.engine.docker("logs", self.look(service).id)


def ask(host: str, port: int, path: str, body: object = None) -> tuple[int, str]:
    """Status and body of an HTTP answer; POST where there is a body."""
    connection = HTTPConnection(host, port, timeout=10)
    try:
        headers: dict[str, Any] = {} if body is None else {"Content-Type": "application/json"}
        connection.request(
            "GET" if body is None else "POST", path, None if body is None else orjson.dumps(body), headers
        )
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()

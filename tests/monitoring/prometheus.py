"""A real Prometheus on the loopback, with the configuration from `docker/` and other targets."""

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml

from tests.monitoring.dashboards import ALERTS, PROMETHEUS
from tests.monitoring.federation import free_port
from tests.monitoring.tools import program

_READY_SECONDS = 30.0
_STOP_SECONDS = 10.0
_ANSWER_SECONDS = 20.0


class Prometheus:
    """What it answers. See `running`."""

    def __init__(self, address: str) -> None:
        self._http = httpx.Client(base_url=address, timeout=_ANSWER_SECONDS)

    def ready(self) -> bool:
        try:
            return self._http.get("/-/ready").status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query. Raises ValueError with what Prometheus says of one that it cannot answer."""
        return self._get("query", {"query": expr})

    def query_range(self, expr: str, begin: float, end: float, step: float) -> list[dict[str, Any]]:
        """The series between two times (seconds since the epoch), a value every `step` seconds."""
        return self._get("query_range", {"query": expr, "start": begin, "end": end, "step": step})

    def rules(self) -> list[dict[str, Any]]:
        """Every rule that it evaluates, with how that went."""
        groups = self._data("rules", {})["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, with how that went."""
        found: list[dict[str, Any]] = self._data("targets", {})["activeTargets"]
        return found

    def close(self) -> None:
        self._http.close()

    def _get(self, path: str, parameters: dict[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._data(path, parameters)["result"]
        return found

    def _data(self, path: str, parameters: dict[str, Any]) -> dict[str, Any]:
        said = self._http.get(f"/api/v1/{path}", params=parameters).json()
        if said["status"] != "success" or said.get("warnings"):
            raise ValueError(f"{parameters}: {said}")
        data: dict[str, Any] = said["data"]
        return data


@contextlib.contextmanager
def running(folder: Path, targets: Mapping[str, Sequence[int]], scrape_seconds: float) -> Iterator[Prometheus]:
    """Scrape ports of the loopback, by job, meanwhile. Its data lie in `folder` and it is gone afterwards."""
    config = yaml.safe_load(PROMETHEUS.read_text())
    interval = f"{int(scrape_seconds * 1000)}ms"
    config["global"] = {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval}
    config["rule_files"] = [str(ALERTS)]
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [f"127.0.0.1:{port}" for port in targets[job["job_name"]]]}]
    file, port = folder / "prometheus.yml", free_port()
    file.write_text(yaml.safe_dump(config))
    command = [
        program("prometheus"),
        f"--config.file={file}",
        f"--storage.tsdb.path={folder / 'data'}",
        "--storage.tsdb.retention.time=2h",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
    prometheus = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _wait(process, prometheus, folder / "prometheus.log")
        yield prometheus
    finally:
        prometheus.close()
        process.terminate()
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: "subprocess.Popen[bytes]", prometheus: Prometheus, log: Path) -> None:
    pauses = int(_READY_SECONDS / 0.1)
    for _ in range(pauses):
        if prometheus.ready():
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            raise AssertionError(f"Prometheus ended: {log.read_text()[-2000:]}")
    raise AssertionError(f"Prometheus is not ready after {_READY_SECONDS:g} s: {log.read_text()[-2000:]}")

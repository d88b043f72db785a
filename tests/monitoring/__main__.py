"""`python -m tests.monitoring [SECONDS]`: run a federation of real processes, look at it as Grafana would.

Kafka, two aggregators, three clients, evaluator, archiver, inference and monitor, scraped by a real Prometheus; half
way through the aggregator that leads is killed. Writes a page for each dashboard to `build/monitoring/`.
"""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx

from llmos_stream.broker import LocalKafka
from tests.monitoring.dashboards import DASHBOARDS
from tests.monitoring.draw import Span, draw
from tests.monitoring.federation import free_port
from tests.monitoring.prometheus import running

_SECONDS = 180.0
_SCRAPE_SECONDS = 1.0
_PAUSE_SECONDS = 0.02
_STOP_SECONDS = 20.0
_ROLES = {"aggregator": 2, "client": 3, "evaluator": 1, "archiver": 1, "inference": 1, "monitor": 1}
_PREDICTIONS = free_port()
_SETTINGS = {
    "LLMOS_FEDERATION__NAME": "watched",
    "LLMOS_AGGREGATION__BUFFER_SIZE": "3",
    "LLMOS_CLIENT__MIN_TRAIN_SECONDS": "0.6",
    "LLMOS_CLIENT__WAIT_SECONDS": "2",
    "LLMOS_TASK__SHARDS": "3",
    "LLMOS_RUNTIME__TORCH_THREADS": "1",
    "LLMOS_INFERENCE__PORT": str(_PREDICTIONS),
    "LLMOS_OPERATIONS__HOST": "127.0.0.1",
}


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else _SECONDS
    target = Path("build/monitoring")
    target.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        kafka = stack.enter_context(LocalKafka())
        services: dict[str, list[tuple[int, subprocess.Popen[bytes]]]] = {}
        stack.callback(_end, services)
        for role, count in _ROLES.items():
            for number in range(count):
                services.setdefault(role, []).append(_start(role, number, kafka.bootstrap_servers, folder))
        targets = {role: [port for port, _ in found] for role, found in services.items()}
        prometheus = stack.enter_context(running(folder, targets, _SCRAPE_SECONDS))
        over = threading.Event()
        asking = threading.Thread(target=_ask, args=(over,))
        asking.start()
        stack.callback(asking.join)
        stack.callback(over.set)
        begin = time.time()
        over.wait(seconds / 2)
        for port, process in services["aggregator"]:
            if prometheus.query(f'llmos_leading{{instance="127.0.0.1:{port}"}} == 1'):
                process.kill()
        over.wait(seconds / 2)
        span = Span(begin, time.time(), max(seconds / 120, 1.0))
        for path in DASHBOARDS:
            page = target / f"{path.stem}.html"
            page.write_text(draw(path, prometheus, span))
            print(page)
        firing = prometheus.query("ALERTS")
        print("alerts:", sorted(f"{one['metric']['alertname']} ({one['metric']['alertstate']})" for one in firing))
    return 0


def _start(role: str, number: int, bootstrap_servers: str, folder: Path) -> tuple[int, "subprocess.Popen[bytes]"]:
    port, own = free_port(), folder / f"{role}-{number}"
    own.mkdir()
    environment = {
        **os.environ,
        **_SETTINGS,
        "LLMOS_BROKER__BOOTSTRAP_SERVERS": bootstrap_servers,
        "LLMOS_OPERATIONS__PORT": str(port),
        "LLMOS_REGISTRY__URL": f"file://{folder}/models",
        "LLMOS_CLIENT__SHARD": str(number if role == "client" else 0),
        "LLMOS_CLIENT__STATE_DIR": str(own),
        "LLMOS_CLIENT__SPEED": "0.2" if number == 2 else "1",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    with (own / "log").open("wb") as log:
        command = [sys.executable, "-m", f"services.{role}"]
        return port, subprocess.Popen(command, env=environment, cwd=own, stdout=log, stderr=log)


def _ask(over: threading.Event) -> None:
    """Ask for predictions until it is over; one in forty for what the model does not take."""
    asked = 0
    with httpx.Client(base_url=f"http://127.0.0.1:{_PREDICTIONS}", timeout=10) as http:
        while not over.wait(_PAUSE_SECONDS):
            asked += 1
            inputs = [[[[0.0] * (3 if asked % 40 == 0 else 8)] * 8]] * (1 + asked % 8)
            with suppress(httpx.TransportError):
                http.post("/v1/predict", json={"inputs": inputs})


def _end(services: dict[str, list[tuple[int, "subprocess.Popen[bytes]"]]]) -> None:
    processes = [process for found in services.values() for _, process in found]
    for process in processes:
        process.send_signal(signal.SIGTERM)
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        process.kill()
        process.wait()


if __name__ == "__main__":
    sys.exit(main())

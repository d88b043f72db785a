"""Flower in the deployment that its documents describe: a SuperLink, SuperNodes and an app, in processes of their own.

They listen on loopback only.
"""

import os
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.bench.children import BenchmarkFailed
from tests.bench.peer_host import Started, own_variables, report_of, started

NAME = "Flower"
REQUIREMENTS = ("flwr[simulation]==1.41.*", "numpy", "torch")
_START_SECONDS = 60.0

_PROJECT = """
[project]
name = "beside"
version = "1.0.0"
dependencies = []

[tool.hatch.build.targets.wheel]
packages = ["."]

[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[tool.flwr.app]
publisher = "beside"

[tool.flwr.app.components]
serverapp = "beside.server_app:app"
clientapp = "beside.client_app:app"

[tool.flwr.app.config]
params = 1000
clients = 2
rounds = 2
report = "report.json"
"""

_SERVER_APP = """
import json
import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


def memory(name):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


class Timed(FedAvg):
    ended = []

    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        self.ended.append(time.time())
        return result


@app.main()
def main(grid, context):
    config = context.run_config
    idle = memory("VmRSS:")
    clients = int(config["clients"])
    # Noise, and of every client its own: Flower sends equal tensors once, and training leaves none.
    noise, size = np.random.default_rng(0), int(config["params"]) // 10
    arrays = ArrayRecord([noise.standard_normal(size, dtype=np.float32) for _ in range(10)])
    strategy = Timed(fraction_evaluate=0.0, min_train_nodes=clients, min_available_nodes=clients)
    strategy.start(grid=grid, initial_arrays=arrays, num_rounds=int(config["rounds"]))
    report = {"ended": strategy.ended, "idle_mib": idle, "peak_mib": memory("VmHWM:")}
    Path(config["report"]).write_text(json.dumps(report))
"""

_CLIENT_APP = """
import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


@app.train()
def train(message, context):
    step = np.float32(np.random.default_rng().uniform(1e-3, 2e-3))
    values = [array + step for array in message.content["arrays"].to_numpy_ndarrays()]
    metrics = MetricRecord({"num-examples": 1})
    return Message(content=RecordDict({"arrays": ArrayRecord(values), "metrics": metrics}), reply_to=message)
"""


@dataclass(frozen=True, slots=True)
class Measured:
    """Rounds after the first, and peak memory: the server app's above its imports, and all of the SuperLink's."""

    updates: int
    seconds: float
    server_app_mib: float
    superlink_mib: float


def measure(home: Path, folder: Path, *, params: int, clients: int, rounds: int, limit: float) -> Measured:
    """Run the app in `folder` with what `environment` has made. Raises BenchmarkFailed when it fails or takes longer
    than `limit` seconds.
    """
    app, report = _write_app(folder), folder / "report.json"
    deadline = time.monotonic() + limit
    link, *nodes = _free_ports(1 + clients)
    address = f"127.0.0.1:{link}"
    variables = _variables(home, folder, address)
    with ExitStack() as stack:

        def start(name: str, *arguments: str) -> Started:
            command = [str(home / "bin" / arguments[0]), *arguments[1:]]
            return stack.enter_context(started(f"{NAME}-{name}", command, folder, variables))

        superlink = start(
            "superlink", "flower-superlink", "--insecure", "--disable-runtime-dependency-installation",
            "--host", "127.0.0.1", "--port", str(link),
        )  # fmt: skip
        superlink.wait_for_port(link, min(deadline, time.monotonic() + _START_SECONDS))
        others = [
            start(f"supernode-{port}", "flower-supernode", "--insecure", "--superlink", address, "--port", str(port))
            for port in nodes
        ]
        config = f'params={params} clients={clients} rounds={rounds} report="{report}"'
        runner = start("run", "flwr", "run", str(app), "dep", "--stream", "--run-config", config)
        found = report_of(runner, report, deadline, (superlink, *others))
        superlink_mib = superlink.peak_mib()
    ended: list[float] = found["ended"]
    if len(ended) != rounds:
        raise BenchmarkFailed(f"Flower aggregated {len(ended)} of {rounds} rounds")
    return Measured((rounds - 1) * clients, ended[-1] - ended[0], found["peak_mib"] - found["idle_mib"], superlink_mib)


def _write_app(folder: Path) -> Path:
    app = folder / "app"
    package = app / "beside"
    package.mkdir(parents=True)
    (app / "pyproject.toml").write_text(_PROJECT)
    (package / "__init__.py").write_text("")
    (package / "server_app.py").write_text(_SERVER_APP)
    (package / "client_app.py").write_text(_CLIENT_APP)
    return app


def _variables(home: Path, folder: Path, address: str) -> dict[str, str]:
    """This process's environment with Flower's home in `folder`, where the deployment `dep` is described."""
    flower_home = folder / "flwr"
    flower_home.mkdir()
    (flower_home / "config.toml").write_text(f'[superlink.dep]\naddress = "{address}"\ninsecure = true\n')
    kept = own_variables()
    path = f"{home / 'bin'}{os.pathsep}{kept.get('PATH', '')}"
    return kept | {"PATH": path, "FLWR_HOME": str(flower_home), "FLWR_TELEMETRY_ENABLED": "0"}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

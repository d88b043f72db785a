"""The simulators of others on the work of `simulate`: pfl, and Flower's on Ray. Each in an environment of its own.

Both know rounds only: ten clients a round begin on one version, and their mean makes the next. A script reports how
many client updates took how many seconds, the first round left out: pfl of the CPU (it is one process), Flower of the
clock, with one worker on one core.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.bench import flower_host
from tests.bench.children import BenchmarkFailed, NotHere
from tests.bench.peer_host import environment, own_variables, report_of, started

_COMMON = """
import json
import os
import sys
import time

import numpy as np
import torch
from torch import nn

torch.set_num_threads(1)
report, rounds, cohort = sys.argv[1], int(sys.argv[2]), 10
features, hidden, classes, steps, batch, lr = 64, 128, 10, 5, 16, 0.05


def mlp():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))


def examples(client):
    random = np.random.default_rng(client)
    inputs = random.standard_normal((steps * batch, features), dtype=np.float32)
    return inputs, random.integers(0, classes, steps * batch)


def tell(ended):
    with open(report + ".tmp", "w") as file:
        json.dump({"updates": cohort * (len(ended) - 1), "seconds": ended[-1] - ended[0]}, file)
    os.replace(report + ".tmp", report)

"""
_PFL = (
    _COMMON
    + """
from itertools import count

from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = mlp()

    def loss(self, inputs, targets, **_):
        return nn.functional.cross_entropy(self.layers(inputs), targets.long())

    def metrics(self, inputs, targets, **_):
        return {"loss": Weighted(float(self.loss(inputs, targets)) * len(inputs), len(inputs))}


class Clock(TrainingProcessCallback):
    ended = []

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        self.ended.append(time.process_time())
        return False, Metrics()


numbers = count()
data = FederatedDataset(
    lambda client: Dataset(raw_data=list(examples(client)), user_id=str(client)), lambda: next(numbers) % 1000
)
module = Model()
model = PyTorchModel(module, torch.optim.SGD, torch.optim.SGD(module.parameters(), 1.0))
FederatedAveraging().run(
    algorithm_params=NNAlgorithmParams(
        central_num_iterations=rounds, evaluation_frequency=rounds + 1, train_cohort_size=cohort, val_cohort_size=0
    ),
    backend=SimulatedBackend(training_data=data, val_data=data, postprocessors=[WeightByDatapoints()]),
    model=model,
    model_train_params=NNTrainHyperParams(local_num_epochs=1, local_learning_rate=lr, local_batch_size=batch),
    model_eval_params=NNEvalHyperParams(local_batch_size=steps * batch),
    callbacks=[Clock()],
    send_metrics_to_platform=False,
)
tell(Clock.ended)
"""
)
_FLOWER = (
    _COMMON
    + """
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message, context):
    torch.set_num_threads(1)
    model = mlp()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    inputs, targets = map(torch.from_numpy, examples(int(context.node_config["partition-id"])))
    for at in range(0, steps * batch, batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs[at : at + batch]), targets[at : at + batch]).backward()
        optimizer.step()
    metrics = MetricRecord({"num-examples": steps * batch})
    content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Timed(FedAvg):
    ended = []

    def aggregate_train(self, server_round, replies):
        result = super().aggregate_train(server_round, replies)
        self.ended.append(time.time())
        return result


@server_app.main()
def main(grid, context):
    strategy = Timed(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=cohort, min_available_nodes=cohort)
    strategy.start(grid=grid, initial_arrays=ArrayRecord(mlp().state_dict()), num_rounds=rounds)
    tell(Timed.ended)


backend = {"init_args": {"num_cpus": 1}, "client_resources": {"num_cpus": 1, "num_gpus": 0.0}}
run_simulation(server_app, client_app, num_supernodes=cohort, backend_config=backend)
"""
)
_SILENT = {"FLWR_TELEMETRY_ENABLED": "0", "RAY_USAGE_STATS_ENABLED": "0"}
PEERS: Mapping[str, tuple[Sequence[str], str, int]] = {
    "pfl 0.6": (("pfl[pytorch]==0.6.*",), _PFL, 200),
    "Flower's simulation (Ray)": (flower_host.REQUIREMENTS, _FLOWER, 10),
}
"""What is installed, the script, and how many rounds it does."""


def measure(name: str, folder: Path, limit: float) -> float:
    """Client updates a second of one of `PEERS`, whose environment is in `folder` or is made there.

    Raises:
        NotHere: It cannot be installed.
        BenchmarkFailed: It fails, or takes longer than `limit` seconds.
    """
    requirements, script, rounds = PEERS[name]
    home = environment(folder, requirements, name)
    with TemporaryDirectory(prefix="llmos-peer-") as place:
        program, report = Path(place) / "work.py", Path(place) / "report.json"
        program.write_text(script)
        command = [str(home / "bin" / "python"), str(program), str(report), str(rounds)]
        variables = own_variables() | {
            "FLWR_HOME": place,
            "FLWR_TELEMETRY_ENABLED": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
        }
        with started("work", command, Path(place), variables) as runner:
            found = report_of(runner, report, time.monotonic() + limit)
    return float(found["updates"] / found["seconds"])


def measure_all(folder: Path, limit: float) -> dict[str, float]:
    """Those that can be measured here; of the others it is said why not."""
    rates = {}
    for name, folder_name in zip(PEERS, ("pfl-venv", "flower-venv"), strict=True):
        try:
            rates[name] = measure(name, folder / folder_name, limit)
        except (NotHere, BenchmarkFailed) as error:
            sys.stderr.write(f"{name} is left out: {error}\n")
    return rates

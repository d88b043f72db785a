"""Client updates a second of a simulation, beside the matrix products alone and a plain torch loop in the same run.

Every client trains an MLP of 64-128-10 for 5 steps of 16 examples, and its update is folded: a thousand at work, ten
updates a version. `bmm` is the training of as many clients by stacked products and nothing else; `loop` is a client
after the other in plain torch, nothing else either. Times are of the CPU, one thread, after a short run that warms up.
Other simulators do the same work in environments of their own (see `simulation_peers`).
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.simulation import simulate
from llmos_stream.simulation.experiment import make_experiment
from llmos_stream.training.models import mlp
from llmos_stream.training.tensor_task import TensorTask
from tests.bench import simulation_peers
from tests.bench.common import OUTPUT, add_flags, show, write_json
from tests.bench.usage import peak_mib

_FEATURES, _HIDDEN, _CLASSES = 64, 128, 10
_STEPS, _BATCH, _LR = 5, 16, 0.05
_GOAL = 0.5


class Mlp(TensorTask):
    """Random examples: how well it learns does not matter here."""

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        generator = torch.Generator().manual_seed(1)
        inputs = torch.randn(2000, _FEATURES, generator=generator)
        labels = torch.randint(0, _CLASSES, (2000,), generator=generator)
        super().__init__("mlp", (inputs[:1800], labels[:1800]), (inputs[1800:], labels[1800:]), task, client)

    def model(self) -> nn.Module:
        return mlp(_FEATURES, _HIDDEN, _CLASSES, seed=1)

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=_LR)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of this benchmark."""
    add_flags(parser)
    parser.add_argument("--clients", type=int, default=1_000_000, help="virtual clients (default 1000000)")
    parser.add_argument("--updates", type=int, default=20_000, help="client updates that are timed (default 20000)")
    parser.add_argument("--at-once", type=int, default=64, help="clients trained at once (default 64)")
    parser.add_argument("--no-peers", action="store_true", help="leave other simulators out")
    parser.add_argument("--peers", type=Path, default=OUTPUT, metavar="FOLDER", help="where they are, or are put")
    parser.add_argument("--limit", type=float, default=600.0, help="give one up that takes longer, in s (default 600)")


def run(options: argparse.Namespace) -> None:
    """Measure, print and write."""
    torch.set_num_threads(options.threads)
    before = peak_mib()
    _simulated(options, updates=200)  # torch imports a second's worth when a model is first trained
    simulated, how = _simulated(options, options.updates)
    peak = peak_mib()
    limit = max(_rate(lambda: _bmm(options.at_once), options.at_once) for _ in range(5))
    loop = max(_rate(_plain, 1) for _ in range(5))
    named = {"limit: bmm alone": limit, "simulation": simulated, "plain torch loop": loop}
    if not options.no_peers:
        named |= simulation_peers.measure_all(options.peers.absolute(), options.limit)
    rows = [
        [name, f"{rate:,.0f}", f"{100 * rate / limit:.0f} %", f"{rate / loop:.1f}x", f"{simulated / rate:.1f}x"]
        for name, rate in named.items()
    ]
    caption = (
        f"{options.clients:,} virtual clients; {how}; peak memory {peak:.0f} MiB ({before:.0f} before the run); "
        f"a million updates in {1e6 / simulated:.0f} s; goal: {100 * _GOAL:.0f} % of the limit"
    )
    show(
        "Simulated client updates",
        ["what", "updates/s", "of the limit", "of the loop", "simulation beside it"],
        rows,
        caption,
    )
    results = {"rates": named, "peak_mib": peak, "clients": options.clients, "of_the_limit": simulated / limit}
    write_json(options.output, "simulate", results)


def _simulated(options: argparse.Namespace, updates: int) -> tuple[float, str]:
    values = {
        "simulation": {"updates": updates, "at_once": options.at_once, "training": "batched", "device": "cpu"},
        "population": {"clients": options.clients, "concurrency": min(options.clients, 1000)},
        "data": {"split": "drawn", "examples": _STEPS * _BATCH},
        "task": {"entry": f"{__name__}:Mlp"},
        "client": {"batch_size": _BATCH, "local_steps": _STEPS},
        "aggregation": {"buffer_size": 10},
        "evaluator": {"every": 1000},
    }
    arm = make_experiment(values).arms[0]
    begun = time.process_time()
    result = simulate(arm, 0)
    return result.updates / (time.process_time() - begun), result.training


def _rate(action: Callable[[], object], clients: int) -> float:
    action()
    count, begun = 0, time.process_time()
    while (seconds := time.process_time() - begun) < 0.5:
        action()
        count += clients
    return count / seconds


def _bmm(clients: int) -> Tensor:
    """The same training of so many clients, and nothing else."""
    first, second = torch.randn(clients, _HIDDEN, _FEATURES), torch.randn(clients, _CLASSES, _HIDDEN)
    shift, last = torch.zeros(clients, 1, _HIDDEN), torch.zeros(clients, 1, _CLASSES)
    inputs = torch.randn(clients, _BATCH, _FEATURES)
    right = one_hot(torch.randint(0, _CLASSES, (clients, _BATCH)), _CLASSES).float()
    for _ in range(_STEPS):
        hidden = torch.baddbmm(shift, inputs, first.transpose(1, 2)).relu_()
        slope = torch.baddbmm(last, hidden, second.transpose(1, 2)).softmax(2).sub_(right).div_(_BATCH)
        inner = torch.bmm(slope, second).mul_(hidden > 0)
        second.baddbmm_(slope.transpose(1, 2), hidden, alpha=-_LR)
        first.baddbmm_(inner.transpose(1, 2), inputs, alpha=-_LR)
        last.sub_(slope.sum(1, keepdim=True), alpha=_LR)
        shift.sub_(inner.sum(1, keepdim=True), alpha=_LR)
    return first


def _plain() -> Tensor:
    """One client in plain torch."""
    model = mlp(_FEATURES, _HIDDEN, _CLASSES, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=_LR)
    inputs, targets = torch.randn(_BATCH, _FEATURES), torch.randint(0, _CLASSES, (_BATCH,))
    for _ in range(_STEPS):
        optimizer.zero_grad()
        cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return inputs

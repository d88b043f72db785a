"""torchvision's ResNet-18, without weights, trained over a real Kafka: what codecs and server optimisers make of it.

Four clients learn the handwritten digits, enlarged to 32 x 32 pixels, until version 40. Twenty layers of batch
normalisation measure means and variances there, which must come through every codec, moment and chain as what they are:
a run in which a weight or a loss is not finite, or a running variance is negative, ends the benchmark. Client,
aggregator and evaluator are those of the package, in one process. The order in which updates arrive is not fixed.
"""

import argparse
import asyncio
import math
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn.functional import interpolate

from llmos_stream.broker import Broker, LocalKafka, Topics, connect
from llmos_stream.config import ClientSettings, Settings, TaskSettings, load
from llmos_stream.log.events import read_events
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import newest_version
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, configure_logging, run_all
from llmos_stream.training import load_task
from llmos_stream.training.digits import DigitsTask
from llmos_stream.training.seeds import derive_seed
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import site_of
from tests.bench.children import BenchmarkFailed, NotHere
from tests.bench.common import add_flags, show, write_json

POINTS = 1.0
"""How far below the reference an accuracy may lie, in points of a percent."""
CLIENTS = 4
EVERY = 4
LAST = 3
"""Every 4th version is evaluated, and the last 3 of these make a run's accuracy."""
_SIZE = 32
_PLAIN = "float32, sgd"
_CODECS: Mapping[str, Mapping[str, object]] = {
    "float32": {"name": "float32"},
    "int8": {"name": "int8"},
    "top 10 %": {"name": "topk", "fraction": 0.1},
}
_OPTIMIZERS: Mapping[str, Mapping[str, object]] = {
    "sgd": {},
    "momentum": {"lr": 0.3, "momentum": 0.7},
    "adam": {"name": "adam", "lr": 0.01, "epsilon": 0.01, "beta1": 0.5},
}
"""Adam's step is about lr / (2 epsilon) times a change that is far below epsilon. With 0.003 and 0.001 that is above 1:
such changes, and the noise of a codec, are made larger, and 6 points were lost with float32, 41 with int8. With beta1 =
0.9 a step is the mean of the last ten changes, which comes too late in 40 versions: the model swings, or collapses."""


class ResNetDigits(DigitsTask):
    """The digits as images (N, 3, 32, 32), for a ResNet-18 of ten classes: 11,181,642 parameters, 9,600 buffers."""

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        super().__init__(task, client)
        images, labels = self._test
        self._inputs, self._test = _enlarged(self._inputs), (_enlarged(images), labels)

    def _shard(self, shard: int) -> Tensor:
        """Whole batches alone: batch normalisation cannot train on a batch of one."""
        indices = super()._shard(shard)
        return indices[: len(indices) // self.client.batch_size * self.client.batch_size]

    def model(self) -> nn.Module:
        from torchvision.models import resnet18  # noqa: PLC0415  # only this benchmark needs it

        with torch.random.fork_rng():
            torch.manual_seed(derive_seed(self.settings.seed, "model"))
            made: nn.Module = resnet18(num_classes=10)
        return made


def _enlarged(images: Tensor) -> Tensor:
    return interpolate(images, _SIZE, mode="bilinear").expand(-1, 3, -1, -1).contiguous()


def resnet_digits(task: TaskSettings, client: ClientSettings) -> ResNetDigits:
    return ResNetDigits(task, client)


@dataclass(frozen=True)
class Row:
    """One run: the accuracy at its end in %, what an update took, the least running variance of the last version."""

    name: str
    accuracy: float
    update_bytes: float
    least_variance: float
    losses: list[float]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--versions", type=int, default=40, help="the version every run ends at (default 40)")
    parser.add_argument("--rules", nargs="+", choices=_OPTIMIZERS, default=[*_OPTIMIZERS], help="default: all three")


def run(options: argparse.Namespace) -> None:
    """Print a table and write `resnet.json`. Raises BenchmarkFailed for a run that learned nothing that is sound."""
    try:
        import torchvision  # noqa: F401, PLC0415  # only this benchmark needs it
    except ImportError as error:
        raise NotHere("it needs torchvision: pip install torchvision") from error
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    cases = {f"{codec}, {rule}": (_CODECS[codec], _OPTIMIZERS[rule]) for codec in _CODECS for rule in options.rules}
    cases = {_PLAIN: (_CODECS["float32"], _OPTIMIZERS["sgd"])} | cases
    rows = []
    with LocalKafka() as kafka, Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task("", total=len(cases))
        for name, (codec, optimizer) in cases.items():
            progress.update(bar, description=name)
            rows.append(asyncio.run(_trial(name, kafka.bootstrap_servers, codec, optimizer, options.versions)))
            progress.advance(bar)
    torch.set_num_threads(before)
    _show(rows, options.versions)
    write_json(options.output, "resnet", {"versions": options.versions, "results": [asdict(row) for row in rows]})


async def _trial(
    name: str, bootstrap: str, codec: Mapping[str, object], optimizer: Mapping[str, object], last: int
) -> Row:
    settings = load(
        {
            "broker": {"bootstrap_servers": bootstrap},
            "federation": {"name": f"resnet-{uuid.uuid4().hex[:8]}"},
            "task": {"entry": f"{__name__}:{resnet_digits.__name__}", "shards": 4 * CLIENTS, "alpha": 100.0},
            "aggregation": {"buffer_size": CLIENTS},
            "client": {"batch_size": 32, "lr": 0.05},
            "codec": codec,
            "server_optimizer": optimizer,
            "evaluator": {"every": EVERY},
            "stop": {"max_versions": last, "max_seconds": 3600},
            "runtime": {"torch_threads": torch.get_num_threads(), "log_level": "error"},
        }
    )
    configure_logging(settings.runtime)
    async with connect(settings.broker) as broker, Offload(2) as offload:
        await _run_roles(broker, settings, offload)
        federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, Shutdown())
        events = [event async for event in read_events(broker, federation.topics)]
        async with federation.control() as control, federation.reader(federation.topics.models) as reader:
            version = await newest_version(control, federation.replica(reader), 60.0)
    measured = [
        _data(event)["metrics"] for event in events if event.kind is EventKind.EVALUATION and site_of(event) is None
    ]
    losses = [float(metrics["loss"]) for metrics in measured]
    sizes = [float(_data(event)["sent_bytes"]) for event in events if event.kind is EventKind.UPDATE_SENT]
    if version is None or version.head.number != last:
        raise BenchmarkFailed(f"{name}: did not get to version {last}")
    weights = version.layout.unflatten(version.weights)
    if not all(map(math.isfinite, losses)) or not version.weights.isfinite().all():
        raise BenchmarkFailed(f"{name}: not finite; losses {losses}")
    least = min(float(tensor.min()) for key, tensor in weights.items() if key.endswith("running_var"))
    if least <= 0:
        raise BenchmarkFailed(f"{name}: a running variance is {least}")
    return Row(name, 100 * mean(metrics["accuracy"] for metrics in measured[-LAST:]), mean(sizes), least, losses)


async def _run_roles(broker: Broker, settings: Settings, offload: Offload) -> None:
    shutdown = Shutdown()
    task = load_task(settings.task, settings.client)
    clients = []
    for shard in range(CLIENTS):
        client = settings.client.model_copy(update={"id": f"client-{shard}", "shard": shard})
        own = settings.model_copy(update={"client": client})
        state = ClientState(f"client-{shard}", None)
        clients.append(run_client(broker, own, load_task(own.task, client), state, offload, shutdown))
    await run_all(
        run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown),
        run_evaluator(broker, settings, task, offload, shutdown),
        *clients,
    )


def _show(rows: list[Row], versions: int) -> None:
    plain = next(row for row in rows if row.name == _PLAIN)
    show(
        f"ResNet-18 at version {versions}, {CLIENTS} clients, the delta chain that is the default",
        ["updates, server", "accuracy %", "points", "bytes an update", "least running variance"],
        [
            [
                row.name,
                f"{row.accuracy:.2f}",
                f"{row.accuracy - plain.accuracy:+.2f}",
                f"{row.update_bytes:,.0f}",
                f"{row.least_variance:.2e}",
            ]
            for row in rows
        ],
        f"mean of the last {LAST} versions evaluated; points: from {_PLAIN}, of which {POINTS:g} may be lost",
    )
    if lost := [row.name for row in rows if row.accuracy < plain.accuracy - POINTS]:
        raise BenchmarkFailed(f"more than {POINTS:g} points below {_PLAIN}: {'; '.join(lost)}")


def _data(event: Event) -> dict[str, Any]:
    return dict(event.data)

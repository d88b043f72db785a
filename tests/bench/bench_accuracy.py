"""Final accuracy and bytes of whole federations, codec by codec, beside float32, and with and without a delta chain.

Eight clients with unequal, label-skewed shares of real data, the handwritten digits, train one model asynchronously to
the same version whatever the codec, several times from different seeds. Client, aggregator and evaluator are those of
the package, in one process; settings are the defaults unless a row or a flag says otherwise. The order in which updates
arrive is not fixed, so no run repeats another exactly and only means are worth comparing: one of the 360 test images
is 0.28 points. The first table varies the codec of the updates and leaves versions whole, the second varies versions.
"""

import argparse
import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import mean, stdev
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from llmos_stream.config import ClientSettings, TaskSettings, load
from llmos_stream.demo import ClientMix, make_scenario
from llmos_stream.federated.embedded import run_embedded
from llmos_stream.runtime import Shutdown, configure_logging
from llmos_stream.training.digits import DigitsTask
from llmos_stream.training.models import mlp
from llmos_stream.training.seeds import derive_seed
from llmos_stream.types import Event, EventKind
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, show, write_json

POINTS = 0.5
"""How far below float32 a codec's final accuracy may lie, in points of a percent."""
EVERY = 5
LAST = 5
"""Every 5th version is evaluated, and the last 5 of these make a run's final accuracy."""
_REFERENCE = "float32"
_SECONDS = 600.0

FULL: Mapping[str, object] = {"full_every": 1}
UPDATES: Mapping[str, Mapping[str, object]] = {
    _REFERENCE: {"name": "float32"},
    "bfloat16": {"name": "bfloat16"},
    "int8": {"name": "int8"},
    "int4": {"name": "int4"},
    "top 10 %": {"name": "topk", "fraction": 0.1},
    "top 1 %": {"name": "topk", "fraction": 0.01},
}
"""Codec settings; error feedback is on where the codec loses something, which is the default."""
CHAINS: Mapping[str, tuple[str, Mapping[str, object]]] = {
    "int8, delta chain": ("int8", {}),
    "top 1 %, delta chain": ("top 1 %", {}),
}
"""Codec of the updates, and settings of the versions: their defaults."""


class WideDigits(DigitsTask):
    """The digits with a model large enough that payloads, not their heads, make the bytes: 85,002 parameters."""

    def model(self) -> nn.Module:
        seed = derive_seed(self.settings.seed, "model")
        return nn.Sequential(nn.Flatten(), *mlp(64, 256, 256, 10, seed=seed))


def wide_digits(task: TaskSettings, client: ClientSettings) -> WideDigits:
    return WideDigits(task, client)


@dataclass(frozen=True)
class Trial:
    """One run. `accuracies` are of the versions evaluated, in order; bytes are means of an update and of a version."""

    seed: int
    accuracies: dict[int, float]
    updates: int
    update_bytes: float
    raw_bytes: int
    version_bytes: float
    mean_staleness: float

    @property
    def final(self) -> float:
        return mean(list(self.accuracies.values())[-LAST:])


@dataclass(frozen=True)
class Row:
    """The runs of one setting. Accuracies in %; `spread` is the standard deviation over the seeds.

    `points` is the mean difference from float32 with the same seed. `reached` is the first version whose accuracy, as a
    mean over the seeds, is within POINTS of float32's final one. `wire` and `raw` are the bytes of the updates in % of
    what float32 takes on the wire and in memory.
    """

    name: str
    accuracy: float
    spread: float
    points: float
    reached: int | None
    update_bytes: float
    wire: float
    raw: float
    version_bytes: float
    trials: list[Trial]


def run_trial(entry: str, codec: Mapping[str, object], versions: Mapping[str, object], last: int, seed: int) -> Trial:
    """One federation, from version 0 to version `last`. Raises BenchmarkFailed when it does not get there."""
    settings = load(
        {
            "task": {"entry": entry, "seed": seed},
            "codec": codec,
            "versions": versions,
            "evaluator": {"every": EVERY},
            "stop": {"max_versions": last, "max_seconds": _SECONDS},
            "runtime": {"torch_threads": torch.get_num_threads(), "log_level": "error"},
        }
    )
    configure_logging(settings.runtime)
    events: list[Event] = []
    scenario = make_scenario(settings, ClientMix(8, slow=0, late=0, leaving=0))
    asyncio.run(run_embedded(scenario.settings, scenario.clients, events.append, Shutdown()))
    sent, published, evaluated, refused = (
        [_data(event) for event in events if event.kind is kind]
        for kind in (
            EventKind.UPDATE_SENT,
            EventKind.VERSION_PUBLISHED,
            EventKind.EVALUATION,
            EventKind.UPDATE_REJECTED,
        )
    )
    if published[-1]["version"] != last or refused:
        raise BenchmarkFailed(f"seed {seed}: ended at version {published[-1]['version']}, {len(refused)} refused")
    return Trial(
        seed=seed,
        accuracies={data["version"]: data["metrics"]["accuracy"] for data in evaluated if "client_id" not in data},
        updates=len(sent),
        update_bytes=mean(data["sent_bytes"] for data in sent),
        raw_bytes=sent[0]["raw_bytes"],
        version_bytes=mean(data["payload_bytes"] for data in published[1:]),
        mean_staleness=mean(data["mean_staleness"] for data in published[1:]),
    )


def row_of(name: str, trials: Sequence[Trial], reference: Sequence[Trial]) -> Row:
    """What `trials` amount to beside those of float32 with the same seeds."""
    enough = mean(trial.final for trial in reference) - POINTS / 100
    curve = {version: mean(trial.accuracies[version] for trial in trials) for version in trials[0].accuracies}
    size = mean(trial.update_bytes for trial in trials)
    return Row(
        name=name,
        accuracy=100 * mean(trial.final for trial in trials),
        spread=100 * stdev(trial.final for trial in trials) if len(trials) > 1 else 0.0,
        points=100 * mean(trial.final - other.final for trial, other in zip(trials, reference, strict=True)),
        reached=next((version for version, accuracy in curve.items() if accuracy >= enough), None),
        update_bytes=size,
        wire=100 * size / mean(trial.update_bytes for trial in reference),
        raw=100 * size / trials[0].raw_bytes,
        version_bytes=mean(trial.version_bytes for trial in trials),
        trials=list(trials),
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--seeds", type=int, default=3, help="runs of each row, seeds 0, 1, ... (default 3)")
    parser.add_argument("--versions", type=int, default=150, help="the version every run ends at (default 150)")
    parser.add_argument(
        "--entry", default=f"{__name__}:{wide_digits.__name__}", help="task (default the digits, 85,002 parameters)"
    )


def run(options: argparse.Namespace) -> None:
    """Print two tables and write `accuracy.json`. Raises BenchmarkFailed when a run does not count."""
    before = torch.get_num_threads()
    torch.set_num_threads(options.threads)
    cases = {name: (codec, FULL) for name, codec in UPDATES.items()}
    cases |= {name: (UPDATES[codec], versions) for name, (codec, versions) in CHAINS.items()}
    trials: dict[str, list[Trial]] = {name: [] for name in cases}
    with Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=options.seeds * len(cases))
        for seed in range(options.seeds):
            for name, (codec, versions) in cases.items():
                progress.update(task, description=f"seed {seed}, {name}")
                trials[name].append(run_trial(options.entry, codec, versions, options.versions, seed))
                progress.advance(task)
    rows = {name: row_of(name, done, trials[_REFERENCE]) for name, done in trials.items()}
    _show_updates([rows[name] for name in UPDATES], options)
    _show_versions(rows)
    write_json(
        options.output,
        "accuracy",
        {
            "entry": options.entry,
            "versions": options.versions,
            "points": POINTS,
            "results": [asdict(row) for row in rows.values()],
        },
    )
    torch.set_num_threads(before)


def _show_updates(rows: Sequence[Row], options: argparse.Namespace) -> None:
    first = rows[0].trials[0]
    show(
        f"Accuracy at version {options.versions}: {first.raw_bytes // 4:,} parameters, 8 clients, {options.seeds} runs",
        ["updates", "accuracy %", "+/-", "points", "within at", "bytes", "% of float32", "on the wire"],
        [
            [
                row.name,
                f"{row.accuracy:.2f}",
                f"{row.spread:.2f}",
                f"{row.points:+.2f}",
                "-" if row.reached is None else str(row.reached),
                f"{row.update_bytes:,.0f}",
                f"{row.raw:.2f}",
                f"{row.wire:.1f}",
            ]
            for row in rows
        ],
        f"mean of the last {LAST} versions evaluated; +/-: over the seeds; points: from float32 with the same seed; "
        f"within at: version from which float32's accuracy is {POINTS} points away; bytes: an update with its head",
    )


def _show_versions(rows: Mapping[str, Row]) -> None:
    beside = {name: codec for name, (codec, _) in CHAINS.items()}
    listed = [row for name, row in rows.items() if name in beside or name in beside.values()]
    show(
        "Broadcast: every version in full, and the delta chain that is the default",
        ["", "bytes a version", "factor", "accuracy %", "points"],
        [
            [
                row.name if row.name in beside else f"{row.name}, all full",
                f"{row.version_bytes:,.0f}",
                f"{rows[beside.get(row.name, row.name)].version_bytes / row.version_bytes:.1f}",
                f"{row.accuracy:.2f}",
                f"{row.points:+.2f}",
            ]
            for row in listed
        ],
        "factor: bytes saved; points: from float32 updates and full versions with the same seed",
    )


def _data(event: Event) -> dict[str, Any]:
    return dict(event.data)

"""Flower in its default deployment, and this pipe with the same model and as many clients, in one run.

Flower 1.41 with a SuperLink and a SuperNode for each client; nobody trains, a client adds a constant of its own. Its
rounds are timed from one aggregation to the next, the first left out. Ours is what `pipe` measures. Flower gets a
virtual environment of its own under build/bench, which takes some GB and minutes the first time.
"""

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch

from tests.bench import flower_host
from tests.bench.bench_pipe import measure_cells
from tests.bench.common import OUTPUT, add_flags, show, write_json
from tests.bench.flower_host import Measured
from tests.bench.peer_host import environment
from tests.bench.pipe_cells import Codec, cells, millions, number
from tests.bench.pipe_rows import Row


class Beside(TypedDict):
    """One row of ours beside Flower. Memory is that of the aggregator, of Flower the server app's; both above idle."""

    name: str
    updates_per_s: float
    times_flower: float
    peak_mib: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", type=number, default=10_000_000, help="float32 parameters (default 1e7)")
    parser.add_argument("--clients", type=number, default=4, help="default 4")
    parser.add_argument("--rounds", type=number, default=4, help="of Flower, the first left out (default 4)")
    parser.add_argument("--updates", nargs="+", type=number, help="of ours in a phase (default 48)")
    usual = [Codec("float32"), Codec("int8"), Codec("int4"), Codec("topk", 0.01)]
    parser.add_argument(
        "--codec", nargs="+", type=Codec.parse, default=usual, help="default float32 int8 int4 topk:0.01"
    )
    parser.add_argument("--venv", type=Path, default=OUTPUT / "flower-venv", help="where Flower is, or is put")
    parser.add_argument(
        "--limit", type=float, default=600.0, help="give up when a part takes longer, in s (default 600)"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and write `flower.json`. Raises NotHere where Flower cannot be installed."""
    torch.set_num_threads(options.threads)
    home = environment(options.venv.absolute(), flower_host.REQUIREMENTS, flower_host.NAME)
    with TemporaryDirectory(prefix="llmos-flower-") as folder:
        flower = flower_host.measure(
            home,
            Path(folder),
            params=options.numel,
            clients=options.clients,
            rounds=max(2, options.rounds),
            limit=options.limit,
        )
    ours: list[Row] = []
    chosen = cells([options.numel], options.codec, [options.clients], options.updates)
    measure_cells(chosen, options, rounds=1, rows=ours, counts=[])
    rows = beside(flower, ours)
    show(
        f"Flower beside it: {millions(options.numel)} parameters, {options.clients} clients",
        ["", "updates/s", "x Flower", "peak MiB"],
        [
            [row["name"], f"{row['updates_per_s']:.2f}", f"{row['times_flower']:.1f}", f"{row['peak_mib']:.0f}"]
            for row in rows
        ],
        f"peak: of the aggregator, of Flower's server app; its SuperLink took {flower.superlink_mib:.0f} MiB more",
    )
    write_json(options.output, "flower", {"flower": vars_of(flower), "results": rows, "ours": ours})


def beside(flower: Measured, ours: list[Row]) -> list[Beside]:
    speed = flower.updates / flower.seconds
    first = Beside(name="Flower", updates_per_s=speed, times_flower=1.0, peak_mib=flower.server_app_mib)
    return [
        first,
        *(
            Beside(
                name=f"{row['codec']}, {row['phase']}",
                updates_per_s=row["updates_per_s"],
                times_flower=row["updates_per_s"] / speed,
                peak_mib=row["aggregator_peak_mib"],
            )
            for row in ours
        ),
    ]


def vars_of(flower: Measured) -> dict[str, float]:
    return {
        "updates": flower.updates,
        "seconds": flower.seconds,
        "server_app_peak_mib": flower.server_app_mib,
        "superlink_peak_mib": flower.superlink_mib,
    }

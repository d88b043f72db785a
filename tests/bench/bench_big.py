"""One delta of 2 GB through the whole pipe, on a Kafka with its default limits, and what memory that takes.

One client publishes it as float32, the aggregator folds it and broadcasts the next version, the client fetches that.
The reference is plain aiokafka with one producer and records as large.
"""

import argparse
import asyncio
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypedDict

import torch
from rich.console import Console
from rich.progress import Progress

from llmos_stream.broker import LocalKafka, connect
from llmos_stream.config import BrokerSettings, load
from llmos_stream.wire.chunks import CHUNK_OVERHEAD
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.pipe_cells import IDLE_NUMEL, Cell, Codec, cell_settings, millions, number, write_delta
from tests.bench.pipe_federation import Memory, Sample, check_counts, federation, idle_memory, versions_in
from tests.bench.raw_kafka import raw_kafka


class Step(TypedDict):
    """A step of the update's way. A MB is 10^6 bytes."""

    step: str
    seconds: float
    mb: float
    mb_s: float
    reference_mb_s: float
    ratio: float


class Peak(TypedDict):
    """Most resident memory above the same process with 1,000 parameters, and that over the model's float32 size."""

    process: str
    peak_mib: float
    peak_models: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", type=number, default=500_000_000, help="float32 parameters (default 5e8)")
    parser.add_argument("--codec", type=Codec.parse, default=Codec("float32"), help="default float32")
    parser.add_argument("--limit", type=float, default=1800.0, help="give up after this many seconds (default 1800)")


def run(options: argparse.Namespace) -> None:
    """Measure, print two tables and write `big.json`. Raises BenchmarkFailed, or BrokerError without a Kafka."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        servers = options.bootstrap
        if servers is None:
            progress.console.print("starting Kafka")
            servers = stack.enter_context(LocalKafka()).bootstrap_servers
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmos-bench-")))
        progress.add_task(f"{millions(options.numel)} parameters", total=None)
        try:
            steps, peaks, counts = asyncio.run(_measure(options, servers, folder))
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    _show(options, steps, peaks)
    plain = {"numel": options.numel, "codec": str(options.codec), "threads": options.threads}
    write_json(options.output, "big", {"options": plain, "steps": steps, "peaks": peaks, "counts": counts})


async def _measure(
    options: argparse.Namespace, servers: str, folder: Path
) -> tuple[list[Step], list[Peak], dict[str, int]]:
    cell = Cell(options.numel, options.codec, 1, 1)
    settings = cell_settings(cell, servers, options.threads)
    idle_settings = cell_settings(Cell(IDLE_NUMEL, options.codec, 1, 1), servers, options.threads)
    async with asyncio.timeout(options.limit), connect(BrokerSettings(bootstrap_servers=servers)) as broker:
        (folder / "idle").mkdir()
        idle = await idle_memory(broker, idle_settings, folder / "idle", write_delta(folder, IDLE_NUMEL))
        topic = f"{fresh_name()}.raw"
        record_bytes = CHUNK_OVERHEAD + load().wire.chunk_bytes
        async with raw_kafka(broker, servers, topic, 1, record_bytes, folder) as raw:
            await raw.mb_per_second(cell.model_bytes, 1)
            reference = await raw.mb_per_second(cell.model_bytes, 1)
        (folder / "cell").mkdir()
        delta = write_delta(folder, cell.numel)
        async with federation(broker, settings, 1, folder / "cell", lambda: None, delta=delta, warm=False) as running:
            sample = await running.measure(1, fetch=True, progress=lambda _: None)
            _, peak = await running.memory()
            counts = check_counts(running.sent, await versions_in(broker, settings))
    return _steps(sample, reference), _peaks(cell, peak, idle), counts


def _steps(sample: Sample, reference: float) -> list[Step]:
    [published], [applied], [fetch] = sample.publishes, sample.latencies, sample.fetches
    update, version = sample.update_bytes / 1e6, sample.version_bytes / 1e6
    return [
        Step(
            step=step,
            seconds=seconds,
            mb=mb,
            mb_s=mb / seconds,
            reference_mb_s=reference,
            ratio=mb / seconds / reference,
        )
        for step, seconds, mb in (
            ("published, until the log has it", published, update),
            ("published, folded and broadcast", applied, update),
            ("fetched back, from the broadcast on", fetch.seconds, version),
            ("all of it", sample.seconds, update),
        )
    ]


def _peaks(cell: Cell, peak: Memory, idle: Memory) -> list[Peak]:
    above = {"aggregator": peak.aggregator_mib - idle.aggregator_mib, "client": peak.client_mib - idle.client_mib}
    return [
        Peak(process=name, peak_mib=mib, peak_models=mib * (1 << 20) / cell.model_bytes) for name, mib in above.items()
    ]


def _show(options: argparse.Namespace, steps: list[Step], peaks: list[Peak]) -> None:
    show(
        f"One {options.codec} delta of {millions(options.numel)} parameters",
        ["", "seconds", "MB", "MB/s", "plain MB/s", "ratio"],
        [
            [
                step["step"],
                f"{step['seconds']:.2f}",
                f"{step['mb']:.1f}",
                f"{step['mb_s']:.1f}",
                f"{step['reference_mb_s']:.1f}",
                f"{step['ratio']:.2f}",
            ]
            for step in steps
        ],
        "plain: aiokafka alone, one producer",
    )
    show(
        "Peak memory",
        ["", "MiB", "x model"],
        [[peak["process"], f"{peak['peak_mib']:.0f}", f"{peak['peak_models']:.2f}"] for peak in peaks],
        "above the same process with 1,000 parameters; the client's includes the delta that it is given",
    )

"""The whole pipe on a real Kafka, from deltas to versions, beside plain aiokafka.

Clients and the aggregator are those of the package, a process each. `one way`: clients publish as fast as they can,
on the version they began with. `round trip`: each fetches the version that its update went into before it publishes
the next. A buffer holds one update of each client. The reference sends as many bytes, in records as large, between as
many processes: once what the updates take on the wire, once what they would take as float32. Other settings come from
the environment, as always. Without --numel, --codec, --clients and --updates: the table that the pipe is judged by.
"""

import argparse
import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from llmos_stream.broker import Broker, LocalKafka, connect
from llmos_stream.config import BrokerSettings, load
from llmos_stream.wire.chunks import CHUNK_OVERHEAD
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, write_json
from tests.bench.pipe_cells import (
    IDLE_NUMEL,
    ROUND_TRIP,
    Cell,
    Codec,
    cell_settings,
    cells,
    number,
    usual_cells,
    write_delta,
)
from tests.bench.pipe_federation import Memory, Sample, check_counts, federation, idle_memory, versions_in
from tests.bench.pipe_rows import Reference, Row, row_of, show_rows
from tests.bench.raw_kafka import RawKafka, raw_kafka
from tests.bench.usage import available_bytes, children_cpu_seconds

KAFKA = {"log.segment.delete.delay.ms": "1000", "log.retention.check.interval.ms": "2000"}
"""Topics that are deleted make room at once: a cell of 100 M parameters writes 15 GB."""
_SPARE_BYTES = 2 << 30
_IMPORTS_BYTES = 200 << 20
_GUESSED_MODELS = 4.0
"""What a client takes beside its delta, in models, as long as none has been measured."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", nargs="+", type=number, help="float32 parameters, as 1e7 (default 1e7)")
    parser.add_argument("--codec", nargs="+", type=Codec.parse, help="as int8 or topk:0.01 (default float32 int8)")
    parser.add_argument("--clients", nargs="+", type=number, help="clients, and updates in a version (default 4)")
    parser.add_argument("--updates", nargs="+", type=number, help="in a phase, of all clients (default: by the size)")
    parser.add_argument("--rounds", type=int, default=1, help="how often each phase is run (default 1)")
    parser.add_argument(
        "--limit", type=float, default=900.0, help="give up when one line takes longer, in s (default 900)"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print two tables and write `pipe.json`. Raises BenchmarkFailed, or BrokerError without a Kafka."""
    torch.set_num_threads(options.threads)
    rows: list[Row] = []
    counts: list[dict[str, object]] = []
    try:
        measure_cells(_chosen(options), options, rounds=options.rounds, rows=rows, counts=counts)
    finally:
        if rows:  # what was measured before something went wrong counts all the same
            show_rows(rows)
            write_json(options.output, "pipe", {"options": _plain(options), "results": rows, "counts": counts})


def measure_cells(
    chosen: Sequence[Cell],
    options: argparse.Namespace,
    *,
    rounds: int,
    rows: list[Row],
    counts: list[dict[str, object]],
) -> None:
    """Measure one after the other, each phase `rounds` times; adds to `rows`, and to `counts` what manifests count.

    Of `options`: `bootstrap`, `threads` and `limit`.
    """
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        servers = options.bootstrap
        broker_cpu: Callable[[], float | None] = _unknown
        if servers is None:
            progress.console.print("starting Kafka")
            servers = stack.enter_context(LocalKafka(properties=KAFKA)).bootstrap_servers
            broker_cpu = partial(children_cpu_seconds, "java")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmos-bench-")))
        bench = _Bench(options, rounds, servers, folder, progress, broker_cpu)
        try:
            asyncio.run(bench.idle())
            for numel, same in itertools.groupby(chosen, lambda cell: cell.numel):
                delta = write_delta(folder, numel)
                for cell in same:
                    found, counted = asyncio.run(bench.run(cell, delta))
                    rows += found
                    counts.append({"cell": str(cell), **counted})
                delta.unlink()
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None


class _Bench:
    """Cell by cell."""

    def __init__(
        self,
        options: argparse.Namespace,
        rounds: int,
        servers: str,
        folder: Path,
        progress: Progress,
        broker_cpu: Callable[[], float | None],
    ) -> None:
        self._options = options
        self._servers = servers
        self._folder = folder
        self._progress = progress
        self._broker_cpu = broker_cpu
        self._rounds = range(rounds)
        self._number = itertools.count(1)
        self._idle = Memory(0.0, 0.0)
        self._models_of: dict[tuple[int, Codec], float] = {}

    async def idle(self) -> None:
        """See what the processes take with a tiny model, to tell what a larger one adds."""
        settings = cell_settings(Cell(IDLE_NUMEL, Codec("int8"), 1, 1), self._servers, self._options.threads)
        delta = write_delta(self._folder, IDLE_NUMEL)
        async with (
            asyncio.timeout(self._options.limit),
            connect(BrokerSettings(bootstrap_servers=self._servers)) as broker,
        ):
            self._idle = await idle_memory(broker, settings, self._made("idle"), delta)

    async def run(self, cell: Cell, delta: Path) -> tuple[list[Row], dict[str, int]]:
        """Rows, and what the manifests count."""
        options = self._options
        async with (
            asyncio.timeout(options.limit),
            connect(BrokerSettings(bootstrap_servers=self._servers)) as broker,
        ):
            cell = self._fitting(cell)
            topic = f"{fresh_name()}.raw"
            record_bytes = CHUNK_OVERHEAD + load().wire.chunk_bytes
            async with raw_kafka(broker, self._servers, topic, cell.clients, record_bytes, self._folder) as raw:
                await raw.mb_per_second(cell.model_bytes, 1)
                return await self._cell(broker, raw, cell, delta)

    async def _cell(self, broker: Broker, raw: RawKafka, cell: Cell, delta: Path) -> tuple[list[Row], dict[str, int]]:
        settings = cell_settings(cell, self._servers, self._options.threads)
        samples: dict[str, list[Sample]] = {phase: [] for phase in cell.phases}
        references: list[Reference] = []
        folder = self._made(f"cell-{next(self._number)}")
        self._say(f"{cell}: starting")
        # A first update each costs large models more than it tells.
        warm = cell.clients * cell.model_bytes < _SPARE_BYTES
        async with federation(
            broker, settings, cell.clients, folder, self._broker_cpu, delta=delta, warm=warm
        ) as running:
            for _ in self._rounds:
                for phase in cell.phases:
                    with self._bar(f"{cell}, {phase}", cell.each * cell.clients) as progress:
                        sample = await running.measure(cell.each, fetch=phase == ROUND_TRIP, progress=progress)
                    samples[phase].append(sample)
                    self._say(f"{cell}, {phase}: {sample.updates / sample.seconds:.2f} updates/s")
                float32 = await self._reference(raw, cell.model_bytes, cell.each)
                same = running.update_bytes >= cell.model_bytes
                update = float32 if same else await self._reference(raw, running.update_bytes, cell.each)
                references.append(Reference(update, float32))
            _, peak = await running.memory()
            counts = check_counts(running.sent, await versions_in(broker, settings))
        reference = Reference(max(one.update for one in references), max(one.float32 for one in references))
        idle = self._idle
        # Beside the delta, which all share.
        self._models_of[cell.numel, cell.codec] = (peak.client_mib - idle.client_mib) * (1 << 20) / cell.model_bytes - 1
        return [row_of(cell, phase, done, reference, peak, idle) for phase, done in samples.items()], counts

    async def _reference(self, raw: RawKafka, size: int, times: int) -> float:
        speed = await raw.mb_per_second(size, times)
        self._say(f"plain aiokafka, {size / 1e6:.2f} MB at a time: {speed:,.0f} MB/s")
        return speed

    def _made(self, name: str) -> Path:
        folder = self._folder / name
        folder.mkdir()
        return folder

    def _fitting(self, cell: Cell) -> Cell:
        """The cell with as many clients as there is memory for."""
        known = [
            models for (numel, codec), models in self._models_of.items() if (numel, codec) == (cell.numel, cell.codec)
        ]
        each = max([1.0, *known] if known else [_GUESSED_MODELS]) * cell.model_bytes + (150 << 20)
        free = available_bytes() - _SPARE_BYTES - 5 * cell.model_bytes  # the aggregator and the delta
        fit = max(1, int(free // each))
        if fit >= cell.clients:
            return cell
        fewer = replace(cell, clients=fit, updates=cell.each * fit)
        sizes = f"{each / (1 << 30):.1f} GiB each, {max(0.0, free / (1 << 30)):.1f} GiB for all"
        self._say(f"{cell}: memory for no more than {fit} of them ({sizes})")
        return fewer

    def _say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    @contextmanager
    def _bar(self, text: str, total: int) -> Iterator[Callable[[int], None]]:
        task: TaskID = self._progress.add_task(text, total=total)
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)


def _chosen(options: argparse.Namespace) -> list[Cell]:
    if not (options.numel or options.codec or options.clients or options.updates):
        return usual_cells()
    return cells(
        options.numel or [10_000_000],
        options.codec or [Codec("float32"), Codec("int8")],
        options.clients or [4],
        options.updates,
    )


def _unknown() -> float | None:
    """The CPU time of a Kafka that is not ours."""
    return None


def _plain(options: argparse.Namespace) -> dict[str, object]:
    named = {name: getattr(options, name) for name in ("numel", "clients", "updates", "rounds", "threads")}
    return named | {"codec": None if options.codec is None else [str(codec) for codec in options.codec]}

"""The whole pipe on a real Kafka, from deltas to versions, beside plain aiokafka.

Clients and the aggregator are those of the package, a process each. `one way`: clients publish as fast as they can,
on the version they began with. `round trip`: each fetches the version that its update went into before it publishes
the next. A buffer holds one update of each client. The reference sends as many bytes, in records as large, between as
many processes: once what the updates take on the wire, once what they would take as float32. Other settings come from
the environment, as always.
"""

import argparse
import asyncio
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from llmos_stream.broker import Broker, LocalKafka, connect
from llmos_stream.config import BrokerSettings, Settings, load
from llmos_stream.wire import record_size_bound
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, write_json
from tests.bench.pipe_federation import Sample, check_counts, federation, versions_in
from tests.bench.pipe_rows import Row, row_of, show_rows
from tests.bench.raw_kafka import RawKafka, raw_kafka
from tests.bench.usage import children_cpu_seconds

PHASES = {"one way": False, "round trip": True}
CODECS = ("float32", "float16", "bfloat16", "int8", "int4", "topk")
_NEVER_STALE = 10**9
_LONG_SECONDS = 600.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", type=int, default=10_000_000, help="float32 parameters (default 10,000,000)")
    parser.add_argument("--codec", nargs="+", choices=CODECS, default=["float32", "int8"], help="default float32 int8")
    parser.add_argument("--clients", type=int, default=4, help="clients, and updates in a version (default 4)")
    parser.add_argument("--updates", type=int, default=24, help="updates in a phase, of all clients (default 24)")
    parser.add_argument("--rounds", type=int, default=2, help="how often each phase is run (default 2)")
    parser.add_argument("--limit", type=float, default=240.0, help="give up after this many seconds (default 240)")


def run(options: argparse.Namespace) -> None:
    """Measure, print two tables and write `pipe.json`. Raises BenchmarkFailed, or BrokerError without a Kafka."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        servers = options.bootstrap
        broker_cpu: Callable[[], float | None] = _unknown
        if servers is None:
            progress.console.print("starting Kafka")
            servers = stack.enter_context(LocalKafka()).bootstrap_servers
            broker_cpu = partial(children_cpu_seconds, "java")
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmos-bench-")))
        bench = _Bench(options, servers, folder, progress, broker_cpu)
        try:
            rows, counts = asyncio.run(bench.run())
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    show_rows(rows, options.numel, options.clients, options.rounds)
    write_json(options.output, "pipe", {"options": _plain(options), "results": rows, "counts": counts})


class _Bench:
    """One run, codec by codec."""

    def __init__(
        self,
        options: argparse.Namespace,
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
        self._each = -(-options.updates // options.clients)
        self._rounds = range(options.rounds)

    async def run(self) -> tuple[list[Row], dict[str, dict[str, int]]]:
        """Rows, and for each codec what its manifests count."""
        options = self._options
        rows: list[Row] = []
        counts: dict[str, dict[str, int]] = {}
        async with asyncio.timeout(options.limit), connect(BrokerSettings(bootstrap_servers=self._servers)) as broker:
            topic = f"bench-{uuid.uuid4().hex[:8]}.raw"
            record_bytes = record_size_bound(load().wire.chunk_bytes)
            async with raw_kafka(broker, self._servers, topic, options.clients, record_bytes, self._folder) as raw:
                await raw.mb_per_second(4 * options.numel, 1)
                float32 = max([await self._reference(raw, 4 * options.numel) for _ in self._rounds])
                for codec in options.codec:
                    here, counts[codec] = await self._codec(broker, raw, codec, float32)
                    rows += here
        return rows, counts

    async def _codec(
        self, broker: Broker, raw: RawKafka, codec: str, float32: float
    ) -> tuple[list[Row], dict[str, int]]:
        settings = self._settings(codec)
        samples: dict[str, list[Sample]] = {phase: [] for phase in PHASES}
        reference = []
        folder = self._folder / codec
        folder.mkdir()
        self._say(f"{codec}: starting an aggregator and {self._options.clients} clients")
        async with federation(broker, settings, self._options.clients, folder, self._broker_cpu) as running:
            for _ in self._rounds:
                reference.append(await self._reference(raw, running.update_bytes))
                for phase, fetch in PHASES.items():
                    with self._bar(f"{codec}, {phase}") as progress:
                        sample = await running.measure(self._each, fetch=fetch, progress=progress)
                    samples[phase].append(sample)
                    self._say(f"{codec}, {phase}: {sample.updates / sample.seconds:.2f} updates/s")
            peaks = await running.peaks()
            counts = check_counts(running.sent, await versions_in(broker, settings))
        raw_bytes = 4 * self._options.numel
        rows = [
            row_of(codec, phase, done, raw_bytes, max(reference), float32, peaks) for phase, done in samples.items()
        ]
        return rows, counts

    async def _reference(self, raw: RawKafka, size: int) -> float:
        speed = await raw.mb_per_second(size, self._each)
        self._say(f"plain aiokafka, {size / 1e6:.2f} MB at a time: {speed:,.0f} MB/s")
        return speed

    def _settings(self, codec: str) -> Settings:
        options = self._options
        return load(
            {
                "federation": {"name": f"bench-{uuid.uuid4().hex[:8]}"},
                "broker": {"bootstrap_servers": self._servers},
                "codec": {"name": codec},
                "aggregation": {"buffer_size": options.clients, "deadline_seconds": _LONG_SECONDS},
                "staleness": {"maximum": _NEVER_STALE},
                "task": {"entry": f"noop:{options.numel}", "shards": options.clients},
                "client": {"wait_seconds": _LONG_SECONDS},
                "runtime": {"torch_threads": options.threads, "log_level": "warning"},
            }
        )

    def _say(self, text: str) -> None:
        self._progress.console.print(text, highlight=False)

    @contextmanager
    def _bar(self, text: str) -> Iterator[Callable[[int], None]]:
        task: TaskID = self._progress.add_task(text, total=self._each * self._options.clients)
        try:
            yield lambda done: self._progress.update(task, completed=done)
        finally:
            self._progress.remove_task(task)


def _unknown() -> float | None:
    """The CPU time of a Kafka that is not ours."""
    return None


def _plain(options: argparse.Namespace) -> dict[str, object]:
    names = ("numel", "codec", "clients", "updates", "rounds", "threads")
    return {name: getattr(options, name) for name in names}

"""How late an aggregator's event loop answers while it decodes, folds and publishes, beside an idle aggregator.

Aggregator and client are those of the package, a process each, on a real Kafka. A tick is due on the aggregator's loop
every millisecond, and those that the loop misses while it is held up count as late as they are: the percentiles are
those of an event that comes at any time. The time runs from the first update until the last version can be read. The
client encodes and Kafka writes on the same machine meanwhile, so that every core is busy; what that alone does shows in
the loop of this process, which is watched in the same time and has next to nothing to do.
"""

import argparse
import asyncio
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic

import torch

from llmos_stream.broker import Broker, LocalKafka, Reader, Topics, connect
from llmos_stream.config import BrokerSettings, Settings, load, to_environment
from llmos_stream.runtime import run_all, run_while
from llmos_stream.types import EventKind
from llmos_stream.wire import load_event
from tests.bench.children import BenchmarkFailed, Child, end_all
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.loop_child import TICK_SECONDS, Lateness, Probe

TARGET_MS = 50.0
_MODULE = "tests.bench.loop_child"
_BUFFER = 2
_NEVER_STALE = 10**9
_LONG_SECONDS = 600.0
_POLL_SECONDS = 0.5
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x.*$", re.MULTILINE)
_FRAME = re.compile(r'File "([^"]*)", line (\d+) in (\S+)')
_FRAMES = 4
_WAITING = {"_worker"}
"""What a thread of a pool is in while it has nothing to do."""


@dataclass(frozen=True)
class Row:
    """One phase: the aggregator's loop, and that of this process in the same time."""

    phase: str
    aggregator: Lateness
    elsewhere: Lateness


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", type=int, default=100_000_000, help="float32 parameters (default 100,000,000)")
    parser.add_argument("--codec", nargs="+", default=["int8", "float32"], help="default int8 float32")
    parser.add_argument("--updates", type=int, default=8, help=f"updates, {_BUFFER} to a version (default 8)")
    parser.add_argument("--idle", type=float, default=5.0, help="seconds that it is watched idle (default 5)")
    parser.add_argument("--limit", type=float, default=400.0, help="give up after this many seconds (default 400)")
    parser.add_argument(
        "--stacks", type=float, metavar="MS", help="also print what the loop was doing whenever it was this late"
    )


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and write `loop.json`. Raises BenchmarkFailed, or BrokerError without a Kafka."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        folder = Path(stack.enter_context(TemporaryDirectory(prefix="llmos-bench-")))
        try:
            found = asyncio.run(_measure(options, servers, folder))
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    show(
        f"Lateness of an aggregator's event loop, {options.numel:,} parameters; target p99 {TARGET_MS:g} ms",
        ["", "seconds", "p50 ms", "p99 ms", "max ms", "elsewhere p99", "max"],
        [
            [
                row.phase,
                f"{row.aggregator.ticks * TICK_SECONDS:.1f}",
                *(f"{value:.2f}" for value in row.aggregator[1:]),
                *(f"{value:.2f}" for value in row.elsewhere[2:]),
            ]
            for row in found
        ],
        f"of a tick due every millisecond; {options.updates} updates, {_BUFFER} to a version; elsewhere: in a process "
        "that does nothing, at the same time",
    )
    write_json(
        options.output,
        "loop",
        {
            "numel": options.numel,
            "updates": options.updates,
            "target_p99_ms": TARGET_MS,
            "results": [_plain(row) for row in found],
        },
    )


def _plain(row: Row) -> dict[str, object]:
    elsewhere = {f"elsewhere_{name}": value for name, value in row.elsewhere._asdict().items()}
    return {"phase": row.phase, **row.aggregator._asdict(), **elsewhere}


async def _measure(options: argparse.Namespace, servers: str, folder: Path) -> list[Row]:
    found: list[Row] = []
    async with asyncio.timeout(options.limit), connect(BrokerSettings(bootstrap_servers=servers)) as broker:
        for codec in options.codec:
            found += await _codec(broker, _settings(options, servers, codec, folder), options, folder)
    return found


async def _codec(broker: Broker, settings: Settings, options: argparse.Namespace, folder: Path) -> list[Row]:
    name, topics = settings.codec.name, Topics(settings.federation.name)
    stacks = [] if options.stacks is None else [str(options.stacks / 1e3)]
    environment = to_environment(settings)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.delete_topics, topics.names)
        children: list[Child] = []
        stack.push_async_callback(end_all, children)
        for role, *more in (["aggregator", *stacks], ["client"]):
            children.append(
                await Child.start(f"{role}-{name}", _MODULE, role, *more, folder=folder, environment=environment)
            )
        aggregator, client = children
        watched = [child.watch() for child in children]
        found = await run_while(_phases(broker, topics, aggregator, client, name, options), *watched)
        if stacks:
            for doing, times in places((folder / f"aggregator-{name}.log").read_text()).most_common():
                print(f"{name}, {times} times: {doing}")
        return found


async def _phases(
    broker: Broker, topics: Topics, aggregator: Child, client: Child, name: str, options: argparse.Namespace
) -> list[Row]:
    await client.ask("publish", updates=0)  # the topics are there, and version 0
    probe = Probe()

    async def row(phase: str) -> Row:
        answer = await aggregator.ask("lateness")
        return Row(phase, Lateness(**answer), Lateness.of(probe.take()))

    try:
        async with broker.reader([topics.events], start="latest") as events:
            await row("begin")
            await _pass(events, options.idle)
            idle = await row(f"idle, before {name}")
            await run_all(client.ask("publish", updates=options.updates), _until(events, options.updates // _BUFFER))
            return [idle, await row(f"{name}, busy")]
    finally:
        probe.stop()


async def _pass(events: Reader, seconds: float) -> None:
    """Let time pass and read what comes meanwhile."""
    end = monotonic() + seconds
    while (left := end - monotonic()) > 0:
        await events.poll(min(left, _POLL_SECONDS))


async def _until(events: Reader, version: int) -> None:
    """Read events until `version` can be read. Raises BenchmarkFailed when an update is refused."""
    while True:
        for record in await events.poll(_POLL_SECONDS):
            event = load_event(record.value or b"")
            if event.kind is EventKind.UPDATE_REJECTED:
                raise BenchmarkFailed(f"an update was refused: {dict(event.data)}")
            if event.kind is EventKind.VERSION_PUBLISHED and event.data["version"] == version:
                return


def places(log: str) -> Counter[str]:
    """Where the loop's thread was, and the others, each time the watchdog wrote all threads into `log`.

    Innermost frames come first. Where the loop's own thread does nothing long, another one holds the interpreter.
    """
    found: Counter[str] = Counter()
    for dump in log.split("Timeout (")[1:]:
        *others, loop = [_FRAME.findall(thread) for thread in _THREAD.split(dump)[1:]]
        working = [_named(frames[:1]) for frames in others if frames[0][2] not in _WAITING]
        found[" | ".join([_named(loop[:_FRAMES]), *working])] += 1
    return found


def _named(frames: Sequence[tuple[str, str, str]]) -> str:
    return " < ".join(f"{'/'.join(file.split('/')[-2:])}:{line} {name}" for file, line, name in frames)


def _settings(options: argparse.Namespace, servers: str, codec: str, folder: Path) -> Settings:
    return load(
        {
            "federation": {"name": fresh_name()},
            "broker": {"bootstrap_servers": servers},
            "codec": {"name": codec},
            "aggregation": {"buffer_size": _BUFFER, "deadline_seconds": _LONG_SECONDS},
            "staleness": {"maximum": _NEVER_STALE},
            "task": {"entry": f"noop:{options.numel}", "shards": 1},
            "client": {"state_dir": folder / f"state-{codec}"},
            "runtime": {"torch_threads": options.threads, "log_level": "warning"},
        }
    )

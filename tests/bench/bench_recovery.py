"""How long a crash costs: from the end of the leading aggregator to the next version, and recovery beside the history.

Failover: two aggregators run as processes with their default settings, one leads and one stands by. The leader is ended
(SIGKILL: it crashes, SIGSTOP: it hangs, SIGTERM: it hands over) while updates arrive, and the clock runs until the next
version is in the log. The reference is `aggregator.takeover_seconds`, which a standby waits.

Recovery: an aggregator starts on histories of different lengths; the clock runs from its start until it has published
the next version, for which the updates wait in the log. The reference is the same on the shortest history.
"""

import argparse
import asyncio
import signal
import statistics
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack, ExitStack

import torch
from rich.console import Console
from rich.progress import Progress, TaskID

from llmos_stream.broker import Broker, LocalKafka, Topics, connect
from llmos_stream.config import BrokerSettings, Settings, load
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.training import load_task
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.federation import Updates, said, start_role

SIGNALS = {"SIGKILL": signal.SIGKILL, "SIGSTOP": signal.SIGSTOP, "SIGTERM": signal.SIGTERM}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--numel", type=int, default=100_000, help="float32 parameters (default 100,000)")
    parser.add_argument("--signals", nargs="+", choices=SIGNALS, default=list(SIGNALS), help="default: all")
    parser.add_argument("--failovers", type=int, default=3, help="times each signal is sent (default 3)")
    parser.add_argument(
        "--history", type=int, nargs="+", default=[10, 100, 1000], help="versions before a start (default 10 100 1000)"
    )
    parser.add_argument("--limit", type=float, default=300.0, help="give up after this many seconds (default 300)")


def run(options: argparse.Namespace) -> None:
    """Measure, print two tables and write `recovery.json`."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        bench = _Bench(options, BrokerSettings(bootstrap_servers=servers), progress)
        try:
            failovers, recoveries = asyncio.run(bench.run())
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    _show(failovers, recoveries)
    write_json(options.output, "recovery", {"failover": failovers, "recovery": recoveries})


class _Bench:
    def __init__(self, options: argparse.Namespace, broker: BrokerSettings, progress: Progress) -> None:
        self._options = options
        self._broker = broker
        self._progress = progress
        settings = self._settings()
        self._initial = initial_of(load_task(settings.task, settings.client), settings)

    async def run(self) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
        options = self._options
        steps = options.failovers * len(options.signals) + sum(options.history)
        shown = self._progress.add_task("failover", total=steps)
        async with asyncio.timeout(options.limit), connect(self._broker) as broker:
            failovers = []
            for name in options.signals:
                seconds = []
                for _ in range(options.failovers):
                    seconds.append(await self._failover(broker, SIGNALS[name]))
                    self._progress.advance(shown)
                failovers.append(_row({"ended by": name}, seconds, self._settings().aggregator.takeover_seconds))
            self._progress.update(shown, description="recovery")
            recoveries: list[dict[str, object]] = []
            for versions in sorted(options.history):
                seconds = await self._recover(broker, versions, shown)
                first = float(str(recoveries[0]["seconds"])) if recoveries else statistics.median(seconds)
                recoveries.append(_row({"versions": versions}, seconds, first))
        return failovers, recoveries

    def _settings(self) -> Settings:
        """Every default, but a version for each update, whatever its base."""
        return load(
            {
                "federation": {"name": fresh_name()},
                "broker": self._broker.model_dump(),
                "task": {"entry": f"noop:{self._options.numel}"},
                "aggregation": {"buffer_size": 1},
                "staleness": {"kind": "constant", "maximum": 10**9},
            }
        )

    async def _failover(self, broker: Broker, number: signal.Signals) -> float:
        settings = self._settings()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(broker.delete_topics, Topics(settings.federation.name).names)
            leader = await start_role(stack, settings, "aggregator", "--quiet")
            await said(leader, "leading")
            log, control = await self._joined(stack, broker, settings)
            await log.until(control, 0)
            standby = await start_role(stack, settings, "aggregator", "--quiet")
            await said(standby, "standing by")
            await log.send(0)
            await log.until(control, 1)
            leader.send_signal(number)
            begun = time.monotonic()
            await log.send(1)
            seen = await log.until(control, 2)
        return seen - begun

    async def _recover(self, broker: Broker, versions: int, shown: TaskID) -> list[float]:
        settings = self._settings()
        seconds = []
        async with AsyncExitStack() as stack:
            stack.push_async_callback(broker.delete_topics, Topics(settings.federation.name).names)
            offload = await stack.enter_async_context(Offload(settings.runtime.workers))
            log, control = await self._joined(stack, broker, settings)
            newest = 0
            for share in (versions, *(1,) * self._options.failovers):
                shutdown = Shutdown()
                for _ in range(share):
                    await log.send(newest)
                newest += share
                begun = time.monotonic()
                aggregator = run_aggregator(broker, settings, lambda: self._initial, offload, shutdown)

                async def until_published() -> None:
                    seconds.append(await log.until(control, newest) - begun)  # noqa: B023  awaited in this round
                    shutdown.request()  # noqa: B023

                await run_all(aggregator, until_published())
                self._progress.advance(shown, share)
        return seconds[1:]

    async def _joined(self, stack: AsyncExitStack, broker: Broker, settings: Settings) -> tuple[Updates, ControlView]:
        topics = Topics(settings.federation.name)
        await broker.create_topics(topics.specs(settings.topics))
        log = await stack.enter_async_context(Updates(broker, settings, self._initial.layout))
        return log, ControlView(await stack.enter_async_context(broker.reader([topics.control], start="earliest")))


def _row(what: dict[str, object], seconds: Sequence[float], reference: float) -> dict[str, object]:
    median = statistics.median(seconds)
    return what | {
        "runs": len(seconds),
        "seconds": median,
        "slowest_seconds": max(seconds),
        "reference_seconds": reference,
        "ratio": median / reference,
    }


def _show(failovers: Sequence[dict[str, object]], recoveries: Sequence[dict[str, object]]) -> None:
    columns = ("runs", "seconds", "slowest_seconds", "ratio")
    for title, key, rows, caption in (
        ("failover: leader ended to next version", "ended by", failovers, "ratio to aggregator.takeover_seconds"),
        ("recovery: start to next version", "versions", recoveries, "ratio to the shortest history"),
    ):
        shown = [[str(row[key]), *(_figure(row[name]) for name in columns)] for row in rows]
        show(title, [key, "runs", "median s", "slowest s", "ratio"], shown, caption)


def _figure(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)

"""Predictions over HTTP while versions are swapped in, beside the same load on one version.

Aggregator and inference service are the package's own processes, on a real Kafka. The load comes from this process over
loopback, a request at a time on each connection; an update goes to the log each time a share of the requests has been
answered. Every answer is compared with what the version it names gives, rebuilt from the log: one of a model that is
half of one version and half of another would be found out.
"""

import argparse
import asyncio
import itertools
import json
import re
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from typing import NamedTuple

import torch
from torch import Tensor

from llmos_stream.broker import Broker, LocalKafka, Topics, connect
from llmos_stream.config import Settings, load
from llmos_stream.inference.model_pool import load_model, making
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.runtime import run_all
from llmos_stream.training import Task, load_task
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.federation import Updates, said, start_role
from tests.bench.pipe_rows import percentile
from tests.federation import decoded_versions

_ROWS = 64
_WARM_UP = 200
_NOISE = 0.05
_TOLERANCE = 1e-3
_PORT = re.compile(r"predicting on .*:(\d+)")
_LENGTH = re.compile(rb"(?i)content-length: (\d+)")
_OK = b"HTTP/1.1 200 "


class Answer(NamedTuple):
    """`row` of the test data was asked; None: the answer was an error."""

    row: int
    seconds: float
    version: int | None
    outputs: list[float]


class Row(NamedTuple):
    """One phase. Latencies in milliseconds; `wrong` are answers that the version they name does not give."""

    phase: str
    predictions: int
    errors: int
    wrong: int
    versions: int
    per_second: float
    p50_ms: float
    p99_ms: float
    max_ms: float


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--task", default="digits", help="what is served (default digits)")
    parser.add_argument("--requests", type=int, default=10_000, help="predictions in a phase (default 10,000)")
    parser.add_argument("--versions", type=int, default=20, help="versions that are swapped in (default 20)")
    parser.add_argument("--connections", type=int, default=16, help="that ask at a time (default 16)")
    parser.add_argument("--limit", type=float, default=400.0, help="give up after this many seconds (default 400)")


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and write `serve.json`. Raises BenchmarkFailed, also for one wrong answer."""
    torch.set_num_threads(options.threads)
    with ExitStack() as stack:
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        settings = _settings(options, servers)
        try:
            rows = asyncio.run(_measure(options, settings))
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    ratio = rows[1].p99_ms / rows[0].p99_ms
    show(
        f"Predictions over HTTP, {options.connections} connections; p99 with swapping is {ratio:.2f} of that without",
        ["", "predictions", "errors", "wrong", "versions", "per s", "p50 ms", "p99 ms", "max ms"],
        [[row.phase, *map(str, row[1:5]), f"{row.per_second:.0f}", *(f"{ms:.1f}" for ms in row[6:])] for row in rows],
        "wrong: not what the version named gives; versions: how many answered; load, service, aggregator and Kafka "
        "share the machine",
    )
    write_json(options.output, "serve", {"p99_ratio": ratio, "results": [row._asdict() for row in rows]})
    if any(row.errors or row.wrong for row in rows):
        raise BenchmarkFailed("there were errors or wrong answers: see the table")


def _settings(options: argparse.Namespace, servers: str) -> Settings:
    return load(
        {
            "federation": {"name": fresh_name()},
            "broker": {"bootstrap_servers": servers},
            "task": {"entry": options.task},
            "aggregation": {"buffer_size": 1},
            "staleness": {"kind": "constant", "maximum": 10**9},
            "inference": {"port": 0},
            "runtime": {"torch_threads": options.threads},
        }
    )


async def _measure(options: argparse.Namespace, settings: Settings) -> list[Row]:
    task = load_task(settings.task, settings.client)
    layout = initial_of(task, settings).layout
    topics = Topics(settings.federation.name)
    async with asyncio.timeout(options.limit), connect(settings.broker) as broker, AsyncExitStack() as stack:
        await broker.create_topics(topics.specs(settings.topics))
        stack.push_async_callback(broker.delete_topics, topics.names)
        await start_role(stack, settings, "aggregator", "--quiet")
        control = ControlView(await stack.enter_async_context(broker.reader([topics.control], start="earliest")))
        updates = await stack.enter_async_context(Updates(broker, settings, layout))
        await updates.until(control, 0)
        service = await start_role(stack, settings, "serve")
        port = _port(await said(service, "predicting on"))
        load = Load(port, _inputs(task), options.connections)
        await load.ready()
        await load.run(_WARM_UP)

        async def publish(number: int) -> None:
            noise = torch.randn(layout.numel, generator=torch.Generator().manual_seed(number)) * _NOISE
            await updates.send(number - 1, noise)
            await updates.until(control, number)

        still = await load.run(options.requests)
        moving = await load.run(options.requests, options.versions, publish)
        expected = await _expected(broker, settings, task)
        return [
            _row("one version", still, expected),
            _row(f"{options.versions} swapped in", moving, expected),
        ]


def _port(line: str) -> int:
    if (found := _PORT.search(line)) is None:
        raise BenchmarkFailed(f"the service does not say its port: {line}")
    return int(found[1])


def _inputs(task: Task) -> Tensor:
    inputs, _ = next(iter(task.test_batches(_ROWS) or ()))
    if not isinstance(inputs, Tensor):
        raise BenchmarkFailed("this task's inputs are not one tensor")
    return inputs


async def _expected(broker: Broker, settings: Settings, task: Task) -> dict[int, Tensor]:
    """What each version in the log gives for the rows."""
    inputs, found = _inputs(task), {}
    async with broker.reader([Topics(settings.federation.name).models], start="earliest") as reader:
        async for version in decoded_versions(reader, settings.wire):
            with torch.no_grad():
                found[version.head.number] = load_model(making(task, settings.task.share), version).model(inputs)
    return found


def _row(phase: str, measured: "Measured", expected: dict[int, Tensor]) -> Row:
    good = [answer for answer in measured.answers if answer.version is not None]
    milliseconds = [1e3 * answer.seconds for answer in measured.answers]
    return Row(
        phase,
        len(measured.answers),
        len(measured.answers) - len(good),
        sum(not _is_of(answer, expected) for answer in good),
        len({answer.version for answer in good}),
        len(measured.answers) / measured.seconds,
        percentile(milliseconds, 0.5),
        percentile(milliseconds, 0.99),
        max(milliseconds),
    )


def _is_of(answer: Answer, expected: dict[int, Tensor]) -> bool:
    outputs = expected.get(-1 if answer.version is None else answer.version)
    return outputs is not None and torch.allclose(
        torch.tensor(answer.outputs), outputs[answer.row], rtol=_TOLERANCE, atol=_TOLERANCE
    )


class Measured(NamedTuple):
    seconds: float
    answers: list[Answer]


class Load:
    """Asks for one row after another, over connections that stay open."""

    def __init__(self, port: int, inputs: Tensor, connections: int) -> None:
        self._port = port
        self._connections = connections
        self._requests = [_request(row) for row in inputs]

    async def ready(self) -> None:
        """Wait for the first version to answer."""
        while (await self.run(1)).answers[0].version is None:  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.1)

    async def run(
        self, requests: int, swaps: int = 0, swap: Callable[[int], Awaitable[None]] | None = None
    ) -> Measured:
        """Ask so often; `swap` is called with 1, 2, ... `swaps` as the requests go on, spread evenly."""
        answers: list[Answer] = []
        turns, begun = itertools.count(), time.perf_counter()
        marks = {requests * number // (swaps + 1): asyncio.Event() for number in range(1, swaps + 1)}

        async def ask() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                while (turn := next(turns)) < requests:
                    answers.append(await self._ask(reader, writer, turn % len(self._requests)))
                    if (mark := marks.get(len(answers))) is not None:
                        mark.set()
            finally:
                writer.close()
                await writer.wait_closed()

        async def change() -> None:
            for number, mark in enumerate(marks.values(), 1):
                await mark.wait()
                if swap is not None:
                    await swap(number)

        await run_all(change(), *(ask() for _ in range(self._connections)))
        return Measured(time.perf_counter() - begun, answers)

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, row: int) -> Answer:
        begun = time.perf_counter()
        writer.write(self._requests[row])
        head = await reader.readuntil(b"\r\n\r\n")
        if (length := _LENGTH.search(head)) is None:
            raise BenchmarkFailed("an answer without a length")
        body = await reader.readexactly(int(length[1]))
        seconds = time.perf_counter() - begun
        if not head.startswith(_OK):
            return Answer(row, seconds, None, [])
        said = json.loads(body)
        return Answer(row, seconds, said["version"], said["outputs"][0])


def _request(row: Tensor) -> bytes:
    body = json.dumps({"inputs": [row.tolist()]}).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body

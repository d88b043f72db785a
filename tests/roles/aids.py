"""A federation to test against: an aggregator in the background, and updates made by hand."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from typing import Any

import orjson
import torch
from torch import Tensor

from llmos_stream.broker import Broker, Record, Topics
from llmos_stream.codec import Layout, encode
from llmos_stream.config import Settings, load
from llmos_stream.errors import Fenced
from llmos_stream.log import RunEnd, read_versions, wait_for_topics
from llmos_stream.log.scan import LoggedVersion
from llmos_stream.roles.aggregator import Initial, run_aggregator
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.types import CodecId, CodecSpec, Event, UpdateHead
from llmos_stream.wire import load_event, message_id, pack_prelude, payload_digest, split

LAYOUT = Layout.of({"w": torch.zeros(40), "b": torch.zeros(2, 5)})
NUMEL = LAYOUT.numel
FLOAT32 = CodecSpec(CodecId.FLOAT32)


def settings_for(federation: str, **sections: Mapping[str, Any]) -> Settings:
    """Settings for quick tests: constant staleness, small buffers, no deadline that could interfere, full versions."""
    given: dict[str, dict[str, Any]] = {
        "federation": {"name": federation},
        "aggregation": {"buffer_size": 1, "deadline_seconds": 600.0},
        "staleness": {"kind": "constant"},
        "codec": {"name": "float32"},
        "client": {"wait_seconds": 10.0},
        "aggregator": {"beat_seconds": 0.1, "takeover_seconds": 1.0},
        "versions": {"full_every": 1},
    }
    for section, fields in sections.items():
        given.setdefault(section, {}).update(fields)
    return load(given)


def initial() -> Initial:
    return Initial(LAYOUT, torch.zeros(NUMEL))


def delta_of(value: float) -> Tensor:
    return torch.full((NUMEL,), value)


def update_head(payload: list[bytes], **changes: Any) -> UpdateHead:
    head = UpdateHead(
        client_id="a",
        sequence=0,
        base_version=0,
        num_examples=10,
        layout_digest=LAYOUT.digest,
        codec=FLOAT32,
        payload_size=sum(map(len, payload)),
        payload_digest=payload_digest(payload),
    )
    return replace(head, **changes)


def records_of(head: UpdateHead, payload: list[bytes], chunk_bytes: int = 1 << 16) -> list[bytes]:
    """The records of an update, whatever its head claims about the payload."""
    return list(
        split(
            pack_prelude(head),
            payload,
            payload_size=sum(map(len, payload)),
            message_id=message_id(head.client_id, head.sequence),
            chunk_bytes=chunk_bytes,
        )
    )


def update(delta: Tensor, chunk_bytes: int = 1 << 16, written: CodecSpec = FLOAT32, **changes: Any) -> list[bytes]:
    """The records of a good update, in the codec `written`, with changes to its head."""
    payload = list(encode(delta, written))
    return records_of(update_head(payload, **{"codec": written, **changes}), payload, chunk_bytes)


class Running:
    """A running aggregator, and what it has written."""

    def __init__(self, broker: Broker, settings: Settings, task: "asyncio.Task[RunEnd | None]", stop: Shutdown) -> None:
        self.broker = broker
        self.settings = settings
        self.topics = Topics(settings.federation.name)
        self.task = task
        self.shutdown = stop

    async def kill(self) -> None:
        """End it in the middle of whatever it does, as far as a process can do that to a part of itself."""
        self.task.cancel()
        await asyncio.wait([self.task])

    async def send(self, records: list[bytes], client: str = "a") -> int:
        """Write records to `<f>.updates`; returns the first one's offset."""
        async with self.broker.producer() as producer:
            return (await producer.send_all(self.topics.updates, records, key=client.encode())).offset

    async def read(self, topic: str, count: int) -> list[Record]:
        """The first `count` records of a topic, once they are there. Fails when the aggregator has failed."""
        found: list[Record] = []
        async with self.broker.reader([topic], start="earliest") as reader:
            while len(found) < count:
                if self.task.done() and not self.task.cancelled() and (error := self.task.exception()):
                    raise error
                found += await reader.poll(0.1)
        return found[:count]

    async def quarantined(self, count: int) -> list[dict[str, Any]]:
        return [orjson.loads(record.value or b"") for record in await self.read(self.topics.quarantine, count)]

    async def events(self, kind: str, count: int) -> list[Event]:
        """The first `count` events of a kind, once they are there."""
        found: list[Event] = []
        async with self.broker.reader([self.topics.events], start="earliest") as reader:
            while len(found) < count:
                if self.task.done() and not self.task.cancelled() and (error := self.task.exception()):
                    raise error
                for record in await reader.poll(0.1):
                    event = load_event(record.value or b"")
                    found += [event] if event.kind == kind else []
        return found[:count]

    async def version(self, number: int) -> LoggedVersion:
        """A version, once it is there."""
        await self.events("version_published", number + 1)
        async with self.broker.reader([self.topics.models], start="earliest") as reader:
            async for version in read_versions(reader, self.settings.wire):
                if version.head.number == number:
                    return version
        raise AssertionError(f"version {number} was announced but is not in the log")


@contextlib.asynccontextmanager
async def aggregator(broker: Broker, settings: Settings, clock: Clock = SYSTEM_CLOCK) -> AsyncIterator[Running]:
    """Run an aggregator until the block ends; then stop it in order."""
    shutdown = Shutdown()
    async with Offload(2) as offload:
        task = asyncio.create_task(run_aggregator(broker, settings, initial, offload, shutdown, clock))
        running = Running(broker, settings, task, shutdown)
        try:
            await wait_for_topics(broker, running.topics, shutdown)
            yield running
        finally:
            shutdown.request()
            await asyncio.wait([task])
    # A test that kills or fences one looks at it itself.
    if not (task.cancelled() or isinstance(task.exception(), Fenced)):
        task.result()

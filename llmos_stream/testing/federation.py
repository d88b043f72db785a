"""A federation that runs while a test does: a real aggregator in the background, and updates by hand."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from torch import Tensor, nn

from llmos_stream.broker import Broker, MemoryBroker, Producer, Topics
from llmos_stream.codec import encode, with_buffers
from llmos_stream.config import Settings, load
from llmos_stream.errors import Rejected
from llmos_stream.log import RunEnd
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import Version
from llmos_stream.roles.aggregator import Initial, WarmStart, run_aggregator
from llmos_stream.runtime import SYSTEM_CLOCK, Clock
from llmos_stream.testing.log import PATIENCE_SECONDS, WatchedLog
from llmos_stream.testing.role import running_role
from llmos_stream.testing.updates import FLOAT32, update_head, update_records
from llmos_stream.types import CodecSpec, UpdateHead
from llmos_stream.wire import read_chunk, unpack_prelude


def quick_settings(federation: str = "test", **sections: Mapping[str, Any]) -> Settings:
    """Settings for quick and exact tests, with changes to sections.

    Staleness is constant, every update makes a version, no deadline interferes, nothing is quantised, every version is
    full, and a standby notices within a second.
    """
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


class RunningFederation(WatchedLog):
    """See `running_federation`. `task` is the aggregator's, `settings` and `initial` are what it runs on."""

    def __init__(
        self,
        federation: Federation,
        settings: Settings,
        initial: Initial,
        task: "asyncio.Task[RunEnd | None]",
        producer: Producer,
        patience_seconds: float,
    ) -> None:
        super().__init__(federation, task, patience_seconds)
        self.settings = settings
        self.initial = initial
        self.task = task
        self._producer = producer
        self._sequences: dict[str, int] = {}
        self._newest = 0

    async def publish(
        self,
        delta: Tensor | Mapping[str, Tensor],
        client: str = "a",
        *,
        num_examples: int = 10,
        base_version: int | None = None,
        sequence: int | None = None,
        codec: CodecSpec = FLOAT32,
    ) -> int:
        """Write an update, as a client does that has trained. Returns the offset of its first record.

        Args:
            delta: The trained parameters less those of `base_version`, and the values of the buffers: flat, or by name.
            client: Who it is from.
            num_examples: How many examples it was trained on.
            base_version: The newest version that this object was asked for, unless given.
            sequence: The client's next one, unless given.
            codec: How the delta is written; exact, unless given.
        """
        flat = delta if isinstance(delta, Tensor) else self.initial.layout.flatten(delta)
        parameters, buffers = self.initial.layout.parts(flat)
        payload = list(with_buffers(encode(parameters, codec), buffers))
        sequence = self._sequences.get(client, 0) if sequence is None else sequence
        self._sequences[client] = sequence + 1
        head = update_head(
            self.initial.layout,
            payload,
            client_id=client,
            sequence=sequence,
            base_version=self._newest if base_version is None else base_version,
            num_examples=num_examples,
            codec=codec,
        )
        return await self.send(update_records(head, payload), client)

    async def send(self, records: Sequence[bytes], client: str | None = None) -> int:
        """Write raw records to `<f>.updates`, whatever they are. Returns the first one's offset.

        Their key is `client`, or the client whom their head names, where it can be read.
        """
        key = (client or _client_of(records[0])).encode()
        return (await self._producer.send_all(self.topics.updates, records, key=key)).offset

    async def version(self, number: int) -> Version:
        """A version, decoded, as soon as it is there."""
        version = await super().version(number)
        self._newest = max(self._newest, number)
        return version

    async def stop(self) -> RunEnd | None:
        """Stop the aggregator in order. Returns how the run has ended, if it has."""
        self.federation.shutdown.request()
        return await self.task

    async def kill(self) -> None:
        """End the aggregator in the middle of whatever it does, as far as that goes within a process."""
        self.task.cancel()
        await asyncio.wait([self.task])


def _client_of(record: bytes) -> str:
    try:
        prelude = unpack_prelude(read_chunk(record).body)
    except Rejected:
        return "a"
    return prelude.head.client_id if prelude is not None and isinstance(prelude.head, UpdateHead) else "a"


@asynccontextmanager
async def running_federation(
    initial: nn.Module | Initial,
    settings: Settings | None = None,
    broker: Broker | None = None,
    *,
    clock: Clock = SYSTEM_CLOCK,
    patience_seconds: float = PATIENCE_SECONDS,
    resume: bool = False,
    warm_start: WarmStart | None = None,
) -> AsyncIterator[RunningFederation]:
    """Run an aggregator until the block ends, and stop it in order then.

    An error of the aggregator is raised by whatever waits for it in the block, and at the block's end unless another
    was raised there. One that was killed, or that another aggregator took over from, is the test's to look at.

    Args:
        initial: Version 0: a model, or its layout and weights.
        settings: What to run by; `quick_settings()` unless given.
        broker: Where to run; a new MemoryBroker unless given. It stays open.
        clock: The aggregator's time.
        patience_seconds: How long to wait for anything.
        resume: See `run_aggregator`.
        warm_start: See `run_aggregator`.
    """
    settings = settings or quick_settings()
    broker = broker or MemoryBroker()
    start = Initial.of(initial, settings.task.share) if isinstance(initial, nn.Module) else initial
    aggregating = running_role(
        lambda offload, shutdown: run_aggregator(
            broker, settings, lambda: start, offload, shutdown, clock, resume=resume, warm_start=warm_start
        ),
        patience_seconds,
    )
    async with aggregating as role, broker.producer() as producer:
        topics = Topics(settings.federation.name)
        federation = Federation(broker, topics, settings.wire, role.offload, role.shutdown, clock)
        async with RunningFederation(federation, settings, start, role.task, producer, patience_seconds) as running:
            await running.ready()
            yield running

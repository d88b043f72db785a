"""Loads a recorded log into an in-process broker; see the README next to it."""

import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack  # type: ignore[import-untyped]
import zstandard

from llmos_stream.broker import MemoryBroker, TopicPartition, TopicSpec
from llmos_stream.config import Settings
from tests.broker.helpers import commit
from tests.roles.aids import settings_for


@dataclass(frozen=True)
class RecordedRun:
    """One federation's log, as it was recorded."""

    federation: str
    settings: dict[str, dict[str, Any]]
    topics: list[tuple[str, int, dict[str, str]]]
    records: list[tuple[str, int, int, bytes | None, bytes | None, list[tuple[str, bytes]], int]]
    group: str
    committed: list[tuple[str, int, int]]
    digests: list[str]
    """Of each version's weights, in hex, as the aggregator announced them."""

    def settings_now(self, **sections: Any) -> Settings:
        """The run's settings, and changes to them."""
        given = {section: dict(fields) for section, fields in self.settings.items()}
        for section, fields in sections.items():
            given.setdefault(section, {}).update(fields)
        return settings_for(self.federation, **given)

    async def load(self) -> MemoryBroker:
        """A broker that holds the log: the same offsets and times, so that it goes on where the log ends."""
        clock = _Clock()
        broker = MemoryBroker(clock=clock)
        await broker.create_topics([TopicSpec(name, partitions, config) for name, partitions, config in self.topics])
        by_partition = defaultdict(list)
        for record in self.records:
            by_partition[TopicPartition(record[0], record[1])].append(record)
        for at, records in by_partition.items():
            await _write(broker, clock, at, records)
        await commit(
            broker,
            self.group,
            {TopicPartition(topic, partition): offset for topic, partition, offset in self.committed},
        )
        clock.go_on(max(record[-1] for record in self.records))
        return broker


class _Clock:
    """Stands at the time of the record that is written; then time goes on from the last of them."""

    def __init__(self) -> None:
        self.now = 0.0
        self._begun: float | None = None

    def __call__(self) -> float:
        return self.now if self._begun is None else self.now + time.monotonic() - self._begun

    def go_on(self, time_ms: int) -> None:
        self.now, self._begun = time_ms / 1000, time.monotonic()


async def _write(broker: MemoryBroker, clock: _Clock, at: TopicPartition, records: list[Any]) -> None:
    """Write a partition's records at their own offsets. Whatever is missing between them is made by transactions."""
    end = 0
    async with broker.producer("loading") as transactional, broker.producer() as plain:
        for record, following in zip(records, [*records[1:], None], strict=True):
            _, _, offset, key, value, headers, time_ms = record
            clock.now = time_ms / 1000 + 0.0005
            if offset > end:  # an aborted transaction of n records takes n + 1 offsets
                try:
                    async with transactional.transaction() as gone:
                        for _ in range(offset - end - 1):
                            await gone.send(at.topic, b"", key=b"gone", partition=at.partition)
                        raise _Abort
                except _Abort:
                    pass
            # A record alone in a committed transaction takes 2 offsets.
            if following is not None and following[2] == offset + 2:
                async with transactional.transaction() as transaction:
                    sent = await transaction.send(at.topic, value, key=key, partition=at.partition, headers=headers)
                end = offset + 2
            else:
                sent = await plain.send(at.topic, value, key=key, partition=at.partition, headers=headers)
                end = offset + 1
            assert sent.offset == offset


class _Abort(Exception):
    pass


def runs_of(path: Path) -> dict[str, RecordedRun]:
    """The runs in a file, by name."""
    packed = zstandard.ZstdDecompressor().decompress(path.read_bytes())
    found = msgpack.unpackb(packed, use_list=True)
    return {name: RecordedRun(**fields) for name, fields in found["runs"].items()}

"""The in-process broker: the same promises as Kafka, in the memory of one process."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Self, Unpack

from llmos_stream.broker.memory.cluster import Cluster
from llmos_stream.broker.memory.log import ValueStore
from llmos_stream.broker.memory.producer import MemoryProducer
from llmos_stream.broker.memory.reader import MemoryReader
from llmos_stream.broker.memory.sessions import Sessions
from llmos_stream.broker.ports import ReaderOptions, TopicInfo, TopicSpec


class MemoryBroker:
    """See `ports.Broker`. One object is one log; share it. Any number of event loops and threads may use it at once.

    Nothing outlives the process. Memory is bounded: each partition holds at most `partition_bytes` (and an
    eighth more), or less where the topic's own retention says so; give it a few times the size of the model
    and its chain of versions. `clock` gives seconds since the epoch and governs timestamps, retention and
    the timeout of transactions. `store` makes what a large value is kept in, such as a part of a file (see
    `storage.spool`); without it, all are kept in memory.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        transaction_timeout_seconds: float = 60.0,
        partition_bytes: int = 1 << 30,
        store: Callable[[], ValueStore] | None = None,
    ) -> None:
        self._cluster = Cluster(clock, partition_bytes, store)
        self._sessions = Sessions(self._cluster, transaction_timeout_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Nothing to close: others may still hold the log."""

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        return self._cluster.create(specs)

    async def list_topics(self, prefix: str = "") -> list[TopicInfo]:
        return self._cluster.infos(prefix)

    async def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        self._cluster.configure(name, config)

    async def longest_transaction_seconds(self) -> float | None:
        return None

    async def delete_topics(self, names: Sequence[str]) -> None:
        self._cluster.delete(names)

    def producer(self, transactional_id: str | None = None) -> MemoryProducer:
        return MemoryProducer(self._cluster, self._sessions, transactional_id)

    def reader(self, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> MemoryReader:
        return MemoryReader(self._cluster, self._sessions, topics, **options)

    def clean(self) -> None:
        """Apply retention and compaction now; writing does it as needed."""
        self._cluster.clean()

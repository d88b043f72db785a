"""Readers of the in-process broker."""

import asyncio
from collections.abc import Sequence
from typing import Self, Unpack

from llmos_stream.broker.memory.cluster import Cluster
from llmos_stream.broker.memory.sessions import Sessions
from llmos_stream.broker.ports import ReaderOptions, Record, TopicPartition
from llmos_stream.broker.reading import BaseReader


class MemoryReader(BaseReader):
    """See `ports.Reader`."""

    def __init__(
        self, cluster: Cluster, sessions: Sessions, topics: Sequence[str], **options: Unpack[ReaderOptions]
    ) -> None:
        """Checksums and sizes of fetches have no meaning in memory."""
        super().__init__(topics, **options)
        self._cluster = cluster
        self._sessions = sessions
        self._positions: dict[TopicPartition, int] = {}
        self._assigned = self._positions

    async def __aenter__(self) -> Self:
        for topic in self._topics:
            for number in range(self._cluster.partitions(topic)):
                self._positions[TopicPartition(topic, number)] = 0
        self._positions.update(await self._first())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._positions.clear()

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        now = asyncio.get_running_loop().time
        deadline = now() + timeout_seconds
        while True:
            # The waiter is there before the look, so that nothing can come unseen in between.
            with self._cluster.waiter(self._topics) as waiter:
                overdue = self._sessions.abort_overdue()
                records = self._cluster.read(self._positions, max_records)
                left = deadline - now()
                if records or left <= 0:
                    self._rotate()
                    return records
                await waiter.sleep(left if overdue is None else min(left, overdue))

    async def position(self, at: TopicPartition) -> int:
        return self._positions[self._own(at)]

    async def known_lag(self) -> int:
        return await self.lag()

    async def committed(self, at: TopicPartition) -> int | None:
        return self._cluster.committed(self._grouped(), self._own(at))

    def _seek(self, at: TopicPartition, offset: int) -> None:
        self._positions[at] = offset

    async def _beginnings(self, at: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        return {one: self._cluster.beginning(self._own(one)) for one in at}

    async def _ends(self, at: Sequence[TopicPartition], *, undecided: bool = False) -> dict[TopicPartition, int]:
        self._sessions.abort_overdue()
        end = self._cluster.end if undecided else self._cluster.last_stable
        return {one: end(self._own(one)) for one in at}

    def _rotate(self) -> None:
        """Begin the next poll at another partition, so that a busy one cannot starve the rest."""
        if self._positions:
            first = next(iter(self._positions))
            self._positions[first] = self._positions.pop(first)

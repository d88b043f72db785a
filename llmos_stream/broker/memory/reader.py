"""Readers of the in-process broker."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Self

from llmos_stream.broker.memory.cluster import Cluster
from llmos_stream.broker.memory.sessions import Sessions
from llmos_stream.broker.ports import Record, Start, TopicPartition
from llmos_stream.broker.rules import not_assigned


class MemoryReader:
    """See `ports.Reader`."""

    def __init__(
        self, cluster: Cluster, sessions: Sessions, topics: Sequence[str], start: Start, group: str | None
    ) -> None:
        self._cluster = cluster
        self._sessions = sessions
        self._topics = topics
        self._start: Start = start
        self._group = group
        self._positions: dict[TopicPartition, int] = {}

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return tuple(sorted(self._positions))

    async def __aenter__(self) -> Self:
        assigned = [
            TopicPartition(topic, number) for topic in self._topics for number in range(self._cluster.partitions(topic))
        ]
        self._positions = {at: self._first(at) for at in assigned}
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

    def seek(self, at: TopicPartition, offset: int) -> None:
        if offset < 0:
            raise ValueError(f"offset {offset} is negative")
        self._positions[self._own(at)] = offset

    async def seek_to_beginning(self, *at: TopicPartition) -> None:
        for one in at or self.partitions:
            self.seek(one, self._cluster.beginning(one))

    async def seek_to_end(self, *at: TopicPartition) -> None:
        self._sessions.abort_overdue()
        for one in at or self.partitions:
            self.seek(one, self._cluster.last_stable(one))

    async def position(self, at: TopicPartition) -> int:
        return self._positions[self._own(at)]

    async def end_offsets(self) -> dict[TopicPartition, int]:
        self._sessions.abort_overdue()
        return {at: self._cluster.last_stable(at) for at in self.partitions}

    async def lag(self) -> int:
        return sum(max(0, end - self._positions[at]) for at, end in (await self.end_offsets()).items())

    async def known_lag(self) -> int:
        return await self.lag()

    async def committed(self, at: TopicPartition) -> int | None:
        return self._cluster.committed(self._grouped(), self._own(at))

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        self._cluster.commit(self._grouped(), {self._own(at): offset for at, offset in offsets.items()})

    def _first(self, at: TopicPartition) -> int:
        if self._start == "latest":
            return self._cluster.last_stable(at)
        committed = self._cluster.committed(self._grouped(), at) if self._start == "committed" else None
        return self._cluster.beginning(at) if committed is None else committed

    def _rotate(self) -> None:
        """Begin the next poll at another partition, so that a busy one cannot starve the rest."""
        if self._positions:
            first = next(iter(self._positions))
            self._positions[first] = self._positions.pop(first)

    def _own(self, at: TopicPartition) -> TopicPartition:
        if at not in self._positions:
            raise ValueError(not_assigned(*at))
        return at

    def _grouped(self) -> str:
        if self._group is None:
            raise ValueError("a reader without a group commits nothing")
        return self._group

"""Producers of the in-process broker."""

import asyncio
from collections.abc import Iterable, Mapping
from typing import Self

from llmos_stream.broker.memory.cluster import Cluster
from llmos_stream.broker.memory.sessions import Session, Sessions
from llmos_stream.broker.ports import Headers, Sent, TopicPartition
from llmos_stream.broker.producing import BaseProducer


class MemoryProducer(BaseProducer):
    """See `ports.Producer`."""

    def __init__(self, cluster: Cluster, sessions: Sessions, transactional_id: str | None) -> None:
        super().__init__(transactional_id)
        self._cluster = cluster
        self._sessions = sessions
        self._session: Session | None = None

    async def __aenter__(self) -> Self:
        if self._transactional_id is not None:
            self._session = self._sessions.open(self._transactional_id)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            self._sessions.close(self._session)

    async def _count(self, topic: str) -> int:
        return self._cluster.partitions(topic)

    async def _write_to(
        self, at: TopicPartition, values: Iterable[bytes | None], key: bytes | None, headers: Headers
    ) -> Sent | None:
        first = None
        for value in values:
            await asyncio.sleep(0)  # as over a network, others get their turn between two writes
            sent = self._append(at, value, key, headers)
            first, headers = first or sent, ()
        return first

    async def _write_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        self._sessions.add_offsets(self._held(), group, offsets)

    async def _begin(self) -> None:
        self._sessions.begin(self._held())

    async def _commit(self) -> None:
        self._sessions.end(self._held(), commit=True)

    async def _abort(self) -> None:
        self._sessions.end(self._held(), commit=False)

    def _append(self, at: TopicPartition, value: bytes | None, key: bytes | None, headers: Headers) -> Sent:
        if self._session is not None:
            return self._sessions.append(self._session, at, value, key, headers)
        return self._cluster.append(at, value, key, headers, None)

    def _held(self) -> Session:
        if self._session is None:
            raise ValueError("open the producer first, with `async with`")
        return self._session

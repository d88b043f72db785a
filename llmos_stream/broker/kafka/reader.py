"""Readers on Kafka: read committed, every partition of their topics, no automatic commits."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, Unpack

from aiokafka import AIOKafkaConsumer
from aiokafka import TopicPartition as TheirPartition

from llmos_stream.broker.kafka.connection import Connection
from llmos_stream.broker.kafka.quirks import (
    close_consumer,
    high_watermarks,
    lacks_partitions,
    prepare_consumer,
    reader_error,
    seek,
    uninterrupted,
)
from llmos_stream.broker.kafka.translate import AIOKAFKA_ERRORS, translate
from llmos_stream.broker.kafka.tuning import fetch_options, fetch_wait_ms
from llmos_stream.broker.ports import ReaderOptions, Record, TopicPartition
from llmos_stream.broker.reading import BaseReader
from llmos_stream.broker.rules import partition_missing
from llmos_stream.errors import BrokerUnavailable, TopicMissing

_CLOSE_SECONDS = 5.0


class KafkaReader(BaseReader):
    """See `ports.Reader`."""

    def __init__(self, connection: Connection, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> None:
        super().__init__(topics, **options)
        self._connection = connection
        self._client: Any = None

    async def __aenter__(self) -> Self:
        settings = self._connection.settings
        self._client = await self._connection.start(
            lambda: AIOKafkaConsumer(
                **self._connection.options(),
                group_id=self._group,
                isolation_level="read_committed",
                auto_offset_reset="none",
                enable_auto_commit=False,
                check_crcs=self._options.get("check_crcs", True),
                **fetch_options(settings, self._options.get("fetch_bytes")),
            ),
            AIOKafkaConsumer.start,
            AIOKafkaConsumer.stop,
        )
        try:
            counts = await self._connection.partitions(self._topics, settings.connect_timeout_seconds, self._client)
            self._assigned = {TopicPartition(topic, number) for topic in counts for number in range(counts[topic])}
            async with self._translating():
                await prepare_consumer(self._client, self._topics, fetch_wait_ms(settings, len(self._assigned)))
            positions = await self._first()
        except BaseException:
            await self._close()
            raise
        self._client.assign([TheirPartition(*at) for at in positions])
        for at, offset in positions.items():
            self.seek(at, offset)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._close()

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        if (error := reader_error(self._client)) is not None:
            raise BrokerUnavailable(f"fetching from Kafka at {self._connection.address} broke off: {error}")
        await self._check_topics()
        async with self._translating(timeout_seconds + self._connection.settings.request_timeout_seconds):
            found = await self._client.getmany(timeout_ms=int(timeout_seconds * 1000), max_records=max_records)
        return [
            Record(one.topic, one.partition, one.offset, one.key, one.value, one.timestamp, tuple(one.headers))
            for records in found.values()
            for one in records
        ]

    async def position(self, at: TopicPartition) -> int:
        async with self._translating():
            offset: int = await self._client.position(self._theirs(at))
            return offset

    async def known_lag(self) -> int:
        lag = 0
        for at in self._assigned:
            end = self._client.last_stable_offset(self._theirs(at))
            lag += 0 if end is None else max(0, end - await self.position(at))
        return lag

    async def committed(self, at: TopicPartition) -> int | None:
        self._grouped()
        async with self._translating():
            offset: int | None = await self._client.committed(self._theirs(at))
            return offset

    def _seek(self, at: TopicPartition, offset: int) -> None:
        seek(self._client, self._theirs(at), offset)

    async def _beginnings(self, at: Sequence[TopicPartition]) -> dict[TopicPartition, int]:
        async with self._translating():
            return self._ours(await self._client.beginning_offsets([self._theirs(one) for one in at]))

    async def _ends(self, at: Sequence[TopicPartition], *, undecided: bool = False) -> dict[TopicPartition, int]:
        await self._check_topics()
        theirs = [self._theirs(one) for one in at]
        async with self._translating():
            found = high_watermarks(self._client, theirs) if undecided else self._client.end_offsets(theirs)
            return self._ours(await found)

    async def _check_topics(self) -> None:
        """Raise TopicMissing where one was deleted: where it seems so, ask for the list of all."""
        if not lacks_partitions(self._client, self._assigned):
            return
        with suppress(BrokerUnavailable):
            counts = await self._connection.check_there(self._topics)
            for topic, number in self.partitions:
                if number >= counts[topic]:
                    raise TopicMissing(partition_missing(topic, number))

    def _ours(self, offsets: Mapping[TheirPartition, int]) -> dict[TopicPartition, int]:
        return {TopicPartition(*at): offset for at, offset in offsets.items()}

    def _theirs(self, at: TopicPartition) -> TheirPartition:
        return TheirPartition(*self._own(at))

    @asynccontextmanager
    async def _translating(self, seconds: float | None = None) -> AsyncIterator[None]:
        """Bound the wait and give errors their names here."""
        try:
            async with asyncio.timeout(seconds or self._connection.settings.request_timeout_seconds):
                yield
        except AIOKAFKA_ERRORS as error:
            raise translate(error, self._connection.address) from error

    async def _close(self) -> None:
        await uninterrupted(close_consumer(self._client, seconds=_CLOSE_SECONDS), seconds=2 * _CLOSE_SECONDS)

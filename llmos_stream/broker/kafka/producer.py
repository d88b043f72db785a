"""Producers on Kafka: idempotent, all in-sync replicas, at most `_IN_FLIGHT_BYTES` on their way."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Self, TypeVar

import aiokafka.errors as theirs
from aiokafka import AIOKafkaProducer
from aiokafka import TopicPartition as TheirPartition

from llmos_stream.broker.kafka.connection import Connection
from llmos_stream.broker.kafka.quiet import has_too_few_replicas
from llmos_stream.broker.kafka.quirks import close_producer, look_again, uninterrupted, writer_error
from llmos_stream.broker.kafka.translate import AIOKAFKA_ERRORS, translate
from llmos_stream.broker.kafka.tuning import produce_options
from llmos_stream.broker.placement import check_record
from llmos_stream.broker.ports import Headers, Sent, TopicPartition
from llmos_stream.broker.producing import BaseProducer
from llmos_stream.errors import BrokerError, BrokerUnavailable, TopicMissing

T = TypeVar("T")

_IN_FLIGHT_BYTES = 8 << 20
_CLOSE_SECONDS = 5.0
_LOOK_SECONDS = 2.0
"""Who has waited for this long asks whether the topic is there: aiokafka waits for one that was deleted."""


class KafkaProducer(BaseProducer):
    """See `ports.Producer`.

    After an error from the broker the producer is lost: it says so at every further use. Records that
    wait in aiokafka's queue would otherwise follow later, out of order with a second attempt.
    """

    def __init__(self, connection: Connection, transactional_id: str | None) -> None:
        super().__init__(transactional_id)
        self._connection = connection
        self._seconds = connection.settings.request_timeout_seconds
        self._partitions: dict[str, int] = {}
        self._counting = asyncio.Lock()
        self._client: Any = None
        self._lost: BrokerError | None = None

    async def __aenter__(self) -> Self:
        settings = self._connection.settings
        tuned = produce_options(settings)
        transactional = {
            "transactional_id": self._transactional_id,
            "transaction_timeout_ms": int(settings.transaction_timeout_seconds * 1000),
        }
        self._client = await self._connection.start(
            lambda: AIOKafkaProducer(
                **self._connection.options(),
                acks="all",
                enable_idempotence=True,
                **tuned,
                **(transactional if self._transactional_id is not None else {}),
            ),
            AIOKafkaProducer.start,
            AIOKafkaProducer.stop,
        )
        look_again(self._client)
        return self

    async def __aexit__(self, *_: object) -> None:
        closing = close_producer(self._client, flush=self._lost is None, seconds=_CLOSE_SECONDS)
        await uninterrupted(closing, seconds=3 * _CLOSE_SECONDS)

    async def _count(self, topic: str) -> int:
        async with self._counting:  # many records at once must not each ask for the same number
            if topic not in self._partitions:
                self._partitions |= await self._connection.partitions([topic], self._seconds, self._client)
        return self._partitions[topic]

    async def _write_to(
        self, at: TopicPartition, values: Iterable[bytes | None], key: bytes | None, headers: Headers
    ) -> Sent | None:
        first: Sent | None = None
        under_way: deque[tuple[int, asyncio.Future[Any]]] = deque()
        size = 0
        for value in values:
            check_record(at.topic, key, value, headers)
            self._refuse_lost()
            with self._losing(at.topic):
                under_way.append((len(value or b""), await self._enqueue(at, value, key, headers)))
                headers = ()
                size += len(value or b"")
                while size > _IN_FLIGHT_BYTES:
                    taken, future = under_way.popleft()
                    sent = await self._acknowledged(at.topic, future)
                    first = first or sent
                    size -= taken
        with self._losing(at.topic):
            for _, future in under_way:
                sent = await self._acknowledged(at.topic, future)
                first = first or sent
        return first

    async def _write_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        self._refuse_lost()
        with self._losing():
            async with asyncio.timeout(self._seconds):
                await self._client.send_offsets_to_transaction(
                    {TheirPartition(*at): offset for at, offset in offsets.items()}, group
                )

    async def _begin(self) -> None:
        self._refuse_lost()
        with self._losing():
            await self._client.begin_transaction()

    async def _commit(self) -> None:
        unknown = BrokerUnavailable(
            f"Kafka at {self._connection.address} did not confirm a commit of {self._transactional_id}: whether it "
            "holds is unknown; open a new producer and read back"
        )
        try:
            self._refuse_lost()
            with self._losing():
                async with asyncio.timeout(self._seconds):
                    await self._client.commit_transaction()
        except BrokerUnavailable:
            self._lost = unknown
            raise unknown from None
        except asyncio.CancelledError:
            self._lost = unknown
            raise
        except BrokerError:
            await self._abort_quietly()
            raise

    async def _abort(self) -> None:
        if isinstance(self._lost, BrokerUnavailable | TopicMissing) or writer_error(self._client) is not None:
            return  # the next producer of this id, or the timeout, aborts it
        try:
            async with asyncio.timeout(self._seconds):
                await self._client.abort_transaction()
        except AIOKAFKA_ERRORS as error:
            self._lost = self._translated(error)
            raise self._lost from error
        except asyncio.CancelledError:
            self._lost = BrokerUnavailable("interrupted while a transaction was being aborted; open a new producer")
            raise

    async def _enqueue(
        self, at: TopicPartition, value: bytes | None, key: bytes | None, headers: Headers
    ) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = await self._while_there(
            at.topic,
            lambda: self._client.send(at.topic, value, key=key, partition=at.partition, headers=list(headers)),
        )
        # Nobody may be left to look at the error when the caller is cancelled or fails on an earlier record.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        return future

    async def _acknowledged(self, topic: str, future: asyncio.Future[Any]) -> Sent:
        await self._while_there(topic, lambda: asyncio.wait([future]))
        where = future.result()
        return Sent(where.topic, where.partition, where.offset)

    async def _while_there(self, topic: str, work: Callable[[], Awaitable[T]]) -> T:
        """Await `work`, which may be cancelled and called again. Raises TopicMissing where `topic` goes meanwhile."""
        begun = time.monotonic()
        deadline = begun + self._seconds
        while (left := deadline - time.monotonic()) > 0:
            waiting = asyncio.timeout(min(left, _LOOK_SECONDS))
            try:
                async with waiting:
                    return await work()
            except TimeoutError:
                if not waiting.expired():
                    raise
            with suppress(BrokerUnavailable):
                await self._connection.check_there([topic])
        if has_too_few_replicas(topic, begun):
            raise theirs.NotEnoughReplicasError
        raise TimeoutError(f"no acknowledgement in {self._seconds:g} s")

    def _refuse_lost(self) -> None:
        if self._lost is not None:
            raise type(self._lost)(str(self._lost))

    @contextmanager
    def _losing(self, topic: str | None = None) -> Iterator[None]:
        try:
            yield
        except TopicMissing as error:
            self._lost = error
            raise
        except AIOKAFKA_ERRORS as error:
            self._lost = self._translated(error, topic)
            raise self._lost from error

    def _translated(self, error: BaseException, topic: str | None = None) -> BrokerError:
        cause = writer_error(self._client) or error
        return translate(cause, self._connection.address, topic=topic, producer=self._transactional_id)

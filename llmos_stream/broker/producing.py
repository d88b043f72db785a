"""What every producer does alike: who may write when, and how a transaction ends."""

import logging
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from typing import Unpack

from llmos_stream.broker.placement import partition_of
from llmos_stream.broker.ports import Headers, Sent, TopicPartition, Transaction, WriteOptions
from llmos_stream.errors import BrokerError, Fenced, TransactionAborted

_log = logging.getLogger(__name__)


class _Writer(ABC):
    """The two public ways to write, over what each writer gives."""

    async def send(self, topic: str, value: bytes | None, **options: Unpack[WriteOptions]) -> Sent:
        with self._writing() as producer:
            return await producer._write(topic, [value], **options)

    async def send_all(self, topic: str, values: Iterable[bytes], **options: Unpack[WriteOptions]) -> Sent:
        with self._writing() as producer:
            return await producer._write(topic, values, **options)

    @abstractmethod
    def _writing(self) -> AbstractContextManager["BaseProducer"]:
        """What writes, while the block runs."""


class BaseProducer(_Writer):
    """The public half of a producer, over the few primitives that an implementation gives."""

    def __init__(self, transactional_id: str | None) -> None:
        self._transactional_id = transactional_id
        self._busy = False
        self._turns: Counter[str] = Counter()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        if self._transactional_id is None:
            raise ValueError("a transaction needs a producer with a transactional id")
        if self._busy:
            raise ValueError("one transaction at a time")
        self._busy = True
        try:
            await self._begin()
            transaction = _Transaction(self)
            try:
                yield transaction
            except BaseException:
                await self._abort_quietly()
                raise
            finally:
                transaction.end()
            if transaction.failure is not None:
                await self._abort_quietly()
                if isinstance(transaction.failure, Fenced):
                    raise transaction.failure
                raise TransactionAborted("a write in the transaction failed") from transaction.failure
            await self._commit()
        finally:
            self._busy = False

    async def _write(
        self,
        topic: str,
        values: Iterable[bytes | None],
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Sent:
        partition = self._choose(topic, key, partition, await self._count(topic))
        first = await self._write_to(TopicPartition(topic, partition), values, key, headers)
        if first is None:
            raise ValueError("nothing to send")
        return first

    def _choose(self, topic: str, key: bytes | None, partition: int | None, partitions: int) -> int:
        """A record's partition. Raises ValueError when `partition` is not one of the topic's."""
        if partition is not None:
            if not 0 <= partition < partitions:
                raise ValueError(f"{topic} has no partition {partition}")
            return partition
        if key is not None:
            return partition_of(key, partitions)
        # In turn, so that the order of a run does not hang on chance.
        self._turns[topic] += 1
        return (self._turns[topic] - 1) % partitions

    async def _abort_quietly(self) -> None:
        """Abort; the error that led here matters more than one that comes on top."""
        try:
            await self._abort()
        except BrokerError as error:
            _log.warning("transaction of %s not aborted cleanly: %s", self._transactional_id, error)

    @contextmanager
    def _writing(self) -> Iterator["BaseProducer"]:
        if self._transactional_id is not None:
            raise ValueError("a transactional producer writes inside `async with producer.transaction()`")
        yield self

    @abstractmethod
    async def _begin(self) -> None: ...

    @abstractmethod
    async def _commit(self) -> None: ...

    @abstractmethod
    async def _abort(self) -> None: ...

    @abstractmethod
    async def _count(self, topic: str) -> int:
        """How many partitions the topic has."""

    @abstractmethod
    async def _write_to(
        self, at: TopicPartition, values: Iterable[bytes | None], key: bytes | None, headers: Headers
    ) -> Sent | None:
        """Write records there, `headers` with the first; where that lies, None without any."""

    @abstractmethod
    async def _write_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None: ...


class _Transaction(_Writer):
    """What the block sees. Remembers a failure, so that a swallowed error cannot commit half of the writes."""

    def __init__(self, producer: BaseProducer) -> None:
        self._producer = producer
        self._group: str | None = None
        self._ended = False
        self.failure: BaseException | None = None

    async def send_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        if self._group not in {None, group}:
            raise ValueError(f"this transaction commits offsets of {self._group} already; one group a transaction")
        self._group = group
        with self._writing() as producer:
            if offsets:
                await producer._write_offsets(group, offsets)

    def end(self) -> None:
        self._ended = True

    @contextmanager
    def _writing(self) -> Iterator[BaseProducer]:
        if self._ended:
            raise ValueError("this transaction has ended")
        try:
            yield self._producer
        except BaseException as error:
            self.failure = self.failure or error
            raise

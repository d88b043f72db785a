"""A broker that strikes: everything passes through to the real one, and the injector hears of it."""

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

from llmos_stream.broker import Broker, Producer, Reader, Record, Sent, Start, TopicInfo, TopicPartition, Topics
from llmos_stream.broker.ports import Headers, TopicSpec, Transaction
from llmos_stream.types import UpdateHead
from llmos_stream.wire import read_chunk, unpack_prelude
from tests.faults.injector import Crash, Injector
from tests.faults.plan import Fault, Point


class FaultyBroker:
    """See `ports.Broker`."""

    def __init__(self, inner: Broker, injector: Injector, federation: str) -> None:
        self.inner = inner
        self.injector = injector
        self.topics = Topics(federation)
        self._held: list[tuple[int, list[bytes], bytes | None]] = []

    def describe(self) -> str:
        return self.inner.describe()

    async def check(self) -> None:
        await self.injector.gate()
        await self.inner.check()

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        await self.injector.gate()
        return await self.inner.create_topics(specs)

    async def list_topics(self, prefix: str = "") -> list[TopicInfo]:
        await self.injector.gate()
        return await self.inner.list_topics(prefix)

    async def delete_topics(self, names: Sequence[str]) -> None:
        await self.injector.gate()
        await self.inner.delete_topics(names)

    def producer(self, transactional_id: str | None = None) -> Producer:
        return _Producer(self.inner.producer(transactional_id), self)

    def reader(
        self,
        topics: Sequence[str],
        *,
        start: Start,
        group: str | None = None,
        check_crcs: bool = True,
        fetch_bytes: int | None = None,
    ) -> Reader:
        inner = self.inner.reader(topics, start=start, group=group, check_crcs=check_crcs, fetch_bytes=fetch_bytes)
        return _Reader(inner, self.injector)

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.inner.__aexit__(kind, error, trace)

    @property
    def holds(self) -> bool:
        """Whether something is held back."""
        return bool(self._held)

    def hold(self, until: int, values: list[bytes], key: bytes | None) -> None:
        """Send these once update `until` has been sent."""
        self._held.append((until, values, key))

    async def send_held(self, producer: Producer, number: int | None = None) -> None:
        """Send what was held back until now; all of it where no number is given."""
        for item in [held for held in self._held if number is None or held[0] <= number]:
            await producer.send_all(self.topics.updates, item[1], key=item[2])
            self._held.remove(item)


class _Producer:
    """See `ports.Producer`."""

    def __init__(self, inner: Producer, broker: FaultyBroker) -> None:
        self._inner = inner
        self._broker = broker
        self._injector = broker.injector

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Sent:
        await self._injector.gate()
        return await self._inner.send(topic, value, key=key, partition=partition, headers=headers)

    async def send_all(
        self,
        topic: str,
        values: Iterable[bytes],
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Sent:
        await self._injector.gate()
        if topic != self._broker.topics.updates:
            return await self._inner.send_all(topic, values, key=key, partition=partition, headers=headers)
        records = list(values)
        number = number_of(records)
        self._injector.begin_update(number)
        point = self._injector.of_update(number)
        sent = await self._send_update(records, key, point, number)
        await self._broker.send_held(self._inner, number)
        return sent

    async def _send_update(self, records: list[bytes], key: bytes | None, point: Point | None, number: int) -> Sent:
        topic = self._broker.topics.updates
        if point is None:
            return await self._inner.send_all(topic, records, key=key)
        if point.fault is Fault.KILL_CLIENT:
            if begun := records[: min(point.extra, len(records) - 1)]:
                await self._inner.send_all(topic, begun, key=key)
            await self._injector.strike(point)
        if point.fault in {Fault.REORDER, Fault.DELAY}:
            self._broker.hold(number + point.extra, records, key)
            self._injector.done(point)
            return Sent(topic, 0, 0)  # what the log would answer; nobody waits for where it lies
        sent = await self._inner.send_all(topic, records, key=key)
        if point.fault is Fault.KILL_CLIENT_AFTER_SEND:
            await self._injector.strike(point)
        if point.fault is Fault.DUPLICATE:
            self._broker.hold(number + point.extra, records, key)
            self._injector.done(point)
        return sent

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        injector = self._injector
        await injector.gate()
        await injector.transaction_begins()
        manager = self._inner.transaction()
        transaction = _Transaction(await manager.__aenter__(), self._broker)
        injector.graveyard.append(manager)
        try:
            yield transaction
            await injector.gate()
            await injector.commit_begins()
        except Crash:
            raise  # a process that was killed aborts nothing
        except BaseException as error:
            if not await manager.__aexit__(type(error), error, error.__traceback__):
                raise
        else:
            await manager.__aexit__(None, None, None)
        injector.graveyard.remove(manager)
        await injector.transaction_ended(transaction.version)

    async def __aenter__(self) -> Self:
        await self._injector.gate()
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._injector.gate()
        await self._inner.__aexit__(kind, error, trace)


class _Transaction:
    """See `ports.Transaction`. `version` is the number of the version that it carries, if it carries one."""

    def __init__(self, inner: Transaction, broker: FaultyBroker) -> None:
        self._inner = inner
        self._broker = broker
        self._injector = broker.injector
        self.version: int | None = None

    async def send(
        self,
        topic: str,
        value: bytes | None,
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Sent:
        await self._injector.gate()
        sent = await self._inner.send(topic, value, key=key, partition=partition, headers=headers)
        await self._injector.sent_one()
        return sent

    async def send_all(
        self,
        topic: str,
        values: Iterable[bytes],
        *,
        key: bytes | None = None,
        partition: int | None = None,
        headers: Headers = (),
    ) -> Sent:
        await self._injector.gate()
        if topic == self._broker.topics.models and key is not None:
            self.version = int(key)
            await self._injector.version_is_sent()
        sent = await self._inner.send_all(topic, values, key=key, partition=partition, headers=headers)
        await self._injector.sent_one()
        return sent

    async def send_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        await self._injector.gate()
        await self._inner.send_offsets(group, offsets)
        await self._injector.sent_one()


class _Reader:
    """See `ports.Reader`."""

    def __init__(self, inner: Reader, injector: Injector) -> None:
        self._inner = inner
        self._injector = injector

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return self._inner.partitions

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        await self._injector.gate()
        return await self._inner.poll(timeout_seconds, max_records)

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._inner.seek(at, offset)

    async def seek_to_beginning(self, *at: TopicPartition) -> None:
        await self._injector.gate()
        await self._inner.seek_to_beginning(*at)

    async def seek_to_end(self, *at: TopicPartition) -> None:
        await self._injector.gate()
        await self._inner.seek_to_end(*at)

    async def position(self, at: TopicPartition) -> int:
        await self._injector.gate()
        return await self._inner.position(at)

    async def end_offsets(self) -> dict[TopicPartition, int]:
        await self._injector.gate()
        return await self._inner.end_offsets()

    async def lag(self) -> int:
        await self._injector.gate()
        return await self._inner.lag()

    async def known_lag(self) -> int:
        await self._injector.gate()
        return await self._inner.known_lag()

    async def committed(self, at: TopicPartition) -> int | None:
        await self._injector.gate()
        return await self._inner.committed(at)

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        await self._injector.gate()
        await self._inner.commit(offsets)

    async def __aenter__(self) -> Self:
        await self._injector.gate()
        await self._inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._inner.__aexit__(kind, error, trace)


def number_of(records: Iterable[bytes]) -> int:
    """Which of its client's updates this is: the driver writes it into the metrics."""
    start = bytearray()
    for record in records:
        start += read_chunk(record).body
        if (prelude := unpack_prelude(bytes(start))) is not None:
            if not isinstance(prelude.head, UpdateHead):
                raise TypeError("not an update")
            return int(prelude.head.metrics["n"])
    raise ValueError("no whole prelude in these records")

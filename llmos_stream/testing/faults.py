"""A broker that fails where a test says so: all goes through to another one, and a hook stands around every use."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from llmos_stream.broker import Broker, Producer, Reader, Record, Sent, TopicInfo, TopicPartition, TopicSpec
from llmos_stream.broker.ports import ReaderOptions, Transaction, WriteOptions, Writer

T = TypeVar("T")


@dataclass(slots=True)
class Call:
    """One use of a broker, before it happens."""

    operation: str
    """The method of `Broker`, `Reader`, `Writer` or `Transaction`; or `open` and `close` of a reader or a producer; or
    `begin_transaction`, `commit_transaction` and `abort_transaction`."""
    topics: tuple[str, ...]
    """What a reader reads, what is written to, and what an ending transaction wrote to."""
    target: Any
    """The broker, reader, producer or transaction beneath, on which a hook may call anything itself."""
    arguments: dict[str, Any]
    """By the names of the method's parameters (`at` is a tuple where it takes several). A hook may change them."""
    method: Callable[..., Awaitable[Any]] = field(repr=False)

    async def proceed(self) -> Any:
        """Do what is asked for, and return its result."""
        return await self.method(**self.arguments)


Hook = Callable[[Call], Awaitable[Any]]


async def _proceed(call: Call) -> Any:
    return await call.proceed()


class FaultyBroker:
    """Passes everything on to `inner`, through the hook `around`. See `broker.Broker`.

    The hook is awaited in place of each operation and its result is the operation's: it may raise, wait, change the
    arguments, return something else, and call `call.proceed()` in between, or not at all. Only `seek` and `partitions`,
    which ask nothing of a broker, pass by it. `around` may be exchanged at any time.

    A hook that raises at `commit_transaction` or `abort_transaction` without proceeding leaves the transaction open, as
    a process does that dies: until a newer producer of its id opens, its time is over, or `give_up_transactions`.
    Closing the FaultyBroker does that too.
    """

    def __init__(self, inner: Broker, around: Hook = _proceed) -> None:
        self.inner = inner
        self.around = around
        self._left_open: list[tuple[AbstractAsyncContextManager[Transaction], Producer]] = []

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        topics = tuple(spec.name for spec in specs)
        return await self._ask("create_topics", self.inner, self.inner.create_topics, topics, specs=specs)

    async def list_topics(self, prefix: str = "") -> list[TopicInfo]:
        return await self._ask("list_topics", self.inner, self.inner.list_topics, prefix=prefix)

    async def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        method = self.inner.configure_topic
        await self._ask("configure_topic", self.inner, method, (name,), name=name, config=config)

    async def longest_transaction_seconds(self) -> float | None:
        return await self.inner.longest_transaction_seconds()

    async def delete_topics(self, names: Sequence[str]) -> None:
        await self._ask("delete_topics", self.inner, self.inner.delete_topics, tuple(names), names=names)

    def producer(self, transactional_id: str | None = None) -> Producer:
        return _Producer(self, self.inner.producer(transactional_id))

    def reader(self, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> Reader:
        return _Reader(self, self.inner.reader(topics, **options), tuple(topics))

    async def __aenter__(self) -> Self:
        await self.inner.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.give_up_transactions()
        await self.inner.__aexit__(kind, error, trace)

    async def give_up_transactions(self) -> None:
        """Abort what hooks left open, where no newer producer has, and close its producers."""
        while self._left_open:
            transaction, producer = self._left_open.pop()
            await transaction.__aexit__(_LeftOpen, _LeftOpen(), None)
            await producer.__aexit__(None, None, None)

    async def _ask(
        self,
        operation: str,
        target: object,
        method: Callable[..., Awaitable[T]],
        topics: tuple[str, ...] = (),
        **arguments: Any,
    ) -> T:
        result: T = await self.around(Call(operation, topics, target, arguments, method))
        return result


class _LeftOpen(Exception):
    """What ends a transaction that a hook left open."""


class _Writer:
    """See `ports.Writer`. `written` are the topics that it wrote to."""

    def __init__(self, owner: FaultyBroker, inner: Writer) -> None:
        self._owner = owner
        self._inner = inner
        self.written: dict[str, None] = {}

    async def send(self, topic: str, value: bytes | None, **options: Unpack[WriteOptions]) -> Sent:
        return await self._write("send", self._inner.send, topic=topic, value=value, **options)

    async def send_all(self, topic: str, values: Iterable[bytes], **options: Unpack[WriteOptions]) -> Sent:
        return await self._write("send_all", self._inner.send_all, topic=topic, values=values, **options)

    async def _write(
        self, operation: str, method: Callable[..., Awaitable[Sent]], *, topic: str, **arguments: Any
    ) -> Sent:
        self.written[topic] = None
        whole = {"key": None, "partition": None, "headers": ()} | arguments
        return await self._owner._ask(operation, self._inner, method, (topic,), topic=topic, **whole)


class _Transaction(_Writer):
    """See `ports.Transaction`."""

    def __init__(self, owner: FaultyBroker, inner: Transaction) -> None:
        super().__init__(owner, inner)
        self._send_offsets = inner.send_offsets

    async def send_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        topics = tuple({at.topic: None for at in offsets})
        await self._owner._ask("send_offsets", self._inner, self._send_offsets, topics, group=group, offsets=offsets)


class _Producer(_Writer):
    """See `ports.Producer`."""

    def __init__(self, owner: FaultyBroker, inner: Producer) -> None:
        super().__init__(owner, inner)
        self._producer = inner
        self._left_open = False

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Transaction]:
        manager = self._producer.transaction()
        inner = await self._owner._ask("begin_transaction", self._inner, manager.__aenter__)
        transaction = _Transaction(self._owner, inner)
        try:
            yield transaction
        except BaseException as error:
            await self._end("abort_transaction", manager, transaction, error)
            raise
        await self._end("commit_transaction", manager, transaction)

    async def _end(
        self,
        operation: str,
        manager: AbstractAsyncContextManager[Transaction],
        transaction: _Transaction,
        error: BaseException | None = None,
    ) -> None:
        ended = False

        async def end() -> None:
            nonlocal ended
            ended = True
            await manager.__aexit__(None if error is None else type(error), error, None)

        try:
            await self._owner._ask(operation, transaction._inner, end, tuple(transaction.written))
        finally:
            if not ended:
                self._left_open = True
                self._owner._left_open.append((manager, self._producer))

    async def __aenter__(self) -> Self:
        await self._owner._ask("open", self._inner, self._producer.__aenter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._left_open:
            await self._owner._ask("close", self._inner, lambda: self._producer.__aexit__(kind, error, trace))


class _Reader:
    """See `ports.Reader`."""

    def __init__(self, owner: FaultyBroker, inner: Reader, topics: tuple[str, ...]) -> None:
        self._owner = owner
        self._inner = inner
        self._topics = topics

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        return self._inner.partitions

    def seek(self, at: TopicPartition, offset: int) -> None:
        self._inner.seek(at, offset)

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        return await self._ask("poll", self._inner.poll, timeout_seconds=timeout_seconds, max_records=max_records)

    async def seek_to_beginning(self, *at: TopicPartition) -> None:
        await self._ask("seek_to_beginning", lambda at: self._inner.seek_to_beginning(*at), at=at)

    async def position(self, at: TopicPartition) -> int:
        return await self._ask("position", self._inner.position, at=at)

    async def end_offsets(self, *, undecided: bool = False) -> dict[TopicPartition, int]:
        return await self._ask("end_offsets", self._inner.end_offsets, undecided=undecided)

    async def lag(self) -> int:
        return await self._ask("lag", self._inner.lag)

    async def known_lag(self) -> int:
        return await self._ask("known_lag", self._inner.known_lag)

    async def committed(self, at: TopicPartition) -> int | None:
        return await self._ask("committed", self._inner.committed, at=at)

    async def __aenter__(self) -> Self:
        await self._ask("open", self._inner.__aenter__)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._ask("close", lambda: self._inner.__aexit__(kind, error, trace))

    async def _ask(self, operation: str, method: Callable[..., Awaitable[T]], **arguments: Any) -> T:
        return await self._owner._ask(operation, self._inner, method, self._topics, **arguments)

"""What the rest of the package knows of a log: the records and the four protocols.

Two implementations keep these promises, real Kafka and one in this process; one contract suite holds
both to them. Positions and offsets are Kafka's: a transaction's end takes an offset of its own, so the
offsets of a partition's records rise but have gaps.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol, Required, TypedDict, Unpack

Start = Literal["earliest", "latest", "committed"]
Headers = Sequence[tuple[str, bytes]]


class TopicPartition(NamedTuple):
    """One partition of a topic."""

    topic: str
    partition: int


class Sent(NamedTuple):
    """Where an acknowledged record lies."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True, slots=True)
class Record:
    """One record as read. `value` None is a tombstone; `timestamp_ms` is since the epoch."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class TopicSpec:
    """A topic to create. `config` is Kafka's topic configuration; replication -1 is the broker's default."""

    name: str
    partitions: int = 1
    config: Mapping[str, str] = field(default_factory=dict)
    replication_factor: int = -1


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic that exists.

    `config` holds only what was set for this topic, `effective` all that holds for it, wherever it was set. Both are
    empty where this user may not see them. `replicas` are those of the partition that has the fewest.
    """

    name: str
    partitions: int
    config: Mapping[str, str]
    effective: Mapping[str, str] = field(default_factory=dict)
    replicas: int = 1


class WriteOptions(TypedDict, total=False):
    """What may be said of a record beside its value.

    Its partition is `partition`, else Kafka's murmur2 of the key, else the next in turn.
    """

    key: bytes | None
    partition: int | None
    headers: Headers


class ReaderOptions(TypedDict, total=False):
    """What may be said of a reader beside its topics.

    `start` "committed" is where `group` left off, or the earliest record where it never committed. `check_crcs` False
    spares Kafka's own checksums where payloads carry a digest. `fetch_bytes` is how much one fetch takes from one
    partition, if that is less than the settings say: a reader that jumps about wants no more than a record.
    """

    start: Required[Start]
    group: str | None
    check_crcs: bool
    fetch_bytes: int | None


class Writer(Protocol):
    """The two ways to write, alike inside and outside a transaction.

    Both await the acknowledgement of all in-sync replicas and never write a record twice. They raise
    RecordTooLarge (nothing of that record was sent), TopicMissing, Fenced or BrokerUnavailable. After
    BrokerUnavailable it is unknown whether the record was written and the producer is of no further
    use: open another.
    """

    async def send(self, topic: str, value: bytes | None, **options: Unpack[WriteOptions]) -> Sent:
        """Write one record. A `value` of None is a tombstone and needs a key."""

    async def send_all(self, topic: str, values: Iterable[bytes], **options: Unpack[WriteOptions]) -> Sent:
        """Write several records, in order, on one partition; return where the first lies.

        `values` is consumed lazily while a bounded number of bytes is on its way. `headers` go with the first.
        """


class Transaction(Writer, Protocol):
    """Writes that readers see together or not at all. After one of them failed it can only abort."""

    async def send_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit, with the transaction, the next offset that `group` is to read. One group a transaction."""


class Producer(Writer, AbstractAsyncContextManager["Producer", None], Protocol):
    """Writes records. Open it with `async with`.

    One with a transactional id fences every older one of that id when it opens, and writes inside transactions only.
    """

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Commit when the block ends cleanly, abort when it raises. One at a time.

        Readers see records and offsets of a commit a moment after it returned. Whoever takes over must
        therefore open its producer first and ask for committed offsets then: opening waits for what an
        older producer of the id had under way.

        Raises Fenced when a newer producer has the id (or the broker gave the transaction up because it
        stayed open too long), TransactionAborted when nothing of it became visible, BrokerUnavailable
        when it is unknown whether it committed: then read back.
        """


class Reader(AbstractAsyncContextManager["Reader", None], Protocol):
    """Reads every partition of its topics. Open it with `async with`; not for use by two tasks at once.

    It sees committed records only, and commits nothing by itself.
    """

    @property
    def partitions(self) -> tuple[TopicPartition, ...]:
        """What this reader reads, sorted."""

    async def poll(self, timeout_seconds: float, max_records: int = 500) -> list[Record]:
        """Wait for records at most this long; return as soon as there are some, in order within a partition.

        Raises OffsetGone when a partition's position has been deleted or never existed; the reader is
        usable again after a seek there.
        """

    def seek(self, at: TopicPartition, offset: int) -> None:
        """Read on from `offset`."""

    async def seek_to_beginning(self, *at: TopicPartition) -> None:
        """Read on from the oldest record; all partitions when none is named."""

    async def position(self, at: TopicPartition) -> int:
        """The next offset that `poll` looks at."""

    async def end_offsets(self, *, undecided: bool = False) -> dict[TopicPartition, int]:
        """Where each partition ends for this reader: its last stable offset.

        With `undecided` the high watermark: what open transactions have written lies between the two.
        """

    async def lag(self) -> int:
        """How many offsets lie between the positions and the ends, over all partitions."""

    async def known_lag(self) -> int:
        """As `lag`, by what the broker said when records were fetched last: costs no request."""

    async def committed(self, at: TopicPartition) -> int | None:
        """The next offset the group has committed, if any."""


class Broker(AbstractAsyncContextManager["Broker", None], Protocol):
    """A log, and the factory of what writes to it and reads from it.

    `async with` it to be sure that it answers; raises BrokerUnavailable where it does not.
    """

    async def create_topics(self, specs: Sequence[TopicSpec]) -> list[str]:
        """Create those that are missing and return their names. One that exists but differs is logged, not changed."""

    async def list_topics(self, prefix: str = "") -> list[TopicInfo]:
        """The topics whose names start with `prefix`, by name; internal ones left out."""

    async def configure_topic(self, name: str, config: Mapping[str, str]) -> None:
        """Set these for a topic; what else was set for it stays. Raises TopicMissing."""

    async def longest_transaction_seconds(self) -> float | None:
        """How long a transaction may stay open; None where no one says."""

    async def delete_topics(self, names: Sequence[str]) -> None:
        """Delete topics with all their records; a missing one is no error."""

    def producer(self, transactional_id: str | None = None) -> Producer:
        """A producer, to be opened with `async with`."""

    def reader(self, topics: Sequence[str], **options: Unpack[ReaderOptions]) -> Reader:
        """A reader, to be opened with `async with`; raises TopicMissing then."""

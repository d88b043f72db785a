"""What all producers and readers of one in-process broker share: topics and group offsets, behind one lock.

Every method is short, synchronous and safe to call from any thread.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llmos_stream.broker.memory.log import PartitionLog, Policy, ValueStore
from llmos_stream.broker.memory.waiting import Waiter
from llmos_stream.broker.placement import MAX_RECORD_BYTES, check_record
from llmos_stream.broker.policies import KAFKAS_DEFAULTS, tell_differences
from llmos_stream.broker.ports import Headers, Record, Sent, TopicInfo, TopicPartition, TopicSpec
from llmos_stream.broker.rules import partition_missing, topic_missing
from llmos_stream.errors import BrokerError, OffsetGone, TopicMissing

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Topic:
    config: Mapping[str, str]
    logs: Sequence[PartitionLog]


class Cluster:
    """`clock` gives seconds since the epoch; `partition_bytes` bounds each partition of a topic that deletes.

    `store` makes what a large value is kept in; None: all are kept in memory.
    """

    def __init__(
        self, clock: Callable[[], float], partition_bytes: int, store: Callable[[], ValueStore] | None = None
    ) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self._partition_bytes = partition_bytes
        self._store = store
        self._topics: dict[str, _Topic] = {}
        self._committed: dict[tuple[str, TopicPartition], int] = {}
        self._waiters: set[Waiter] = set()

    def create(self, specs: Iterable[TopicSpec]) -> list[str]:
        created = []
        with self.lock:
            for spec in specs:
                if (known := self._topics.get(spec.name)) is None:
                    policy = Policy.of(spec.config, self._partition_bytes)
                    logs = [PartitionLog(policy, self._store) for _ in range(spec.partitions)]
                    self._topics[spec.name] = _Topic(dict(spec.config), logs)
                    created.append(spec.name)
                else:
                    tell_differences(_log, spec, _info(spec.name, known))
        return created

    def infos(self, prefix: str) -> list[TopicInfo]:
        with self.lock:
            return [_info(name, topic) for name, topic in sorted(self._topics.items()) if name.startswith(prefix)]

    def configure(self, name: str, config: Mapping[str, str]) -> None:
        with self.lock:
            topic = self._find(name)
            self._topics[name] = _Topic({**topic.config, **config}, topic.logs)
            for log in topic.logs:
                log.policy = Policy.of(self._topics[name].config, self._partition_bytes)

    def delete(self, names: Iterable[str]) -> None:
        with self.lock:
            gone = {name for name in names if self._topics.pop(name, None)}
            self._committed = {at: offset for at, offset in self._committed.items() if at[1].topic not in gone}
            self._wake(gone)

    def clean(self) -> None:
        with self.lock:
            for topic in self._topics.values():
                for log in topic.logs:
                    log.clean(self._now_ms())

    def partitions(self, topic: str) -> int:
        """How many the topic has. Raises TopicMissing."""
        with self.lock:
            return len(self._find(topic).logs)

    def append(
        self, at: TopicPartition, value: bytes | None, key: bytes | None, headers: Headers, transaction: int | None
    ) -> Sent:
        with self.lock:
            config = self._find(at.topic).config
            limit = min(MAX_RECORD_BYTES, int(config.get("max.message.bytes", MAX_RECORD_BYTES)))
            check_record(at.topic, key, value, headers, limit)
            if key is None and "compact" in config.get("cleanup.policy", ""):
                raise BrokerError(f"{at.topic} is compacted: its records need keys")
            log = self._log(at)
            offset = log.end
            log.append(Record(*at, offset, key, value, self._now_ms(), tuple(headers)), transaction)
            if transaction is None:
                self._wake([at.topic])
            return Sent(*at, offset)

    def finish(self, transaction: int, touched: Iterable[TopicPartition], *, commit: bool) -> None:
        """End a transaction in every partition it wrote to; a topic may have been deleted meanwhile."""
        with self.lock:
            for at in touched:
                if at.topic in self._topics and (log := self._log(at)).has_open(transaction):
                    (log.commit if commit else log.abort)(transaction)
                    self._wake([at.topic])

    def read(self, positions: dict[TopicPartition, int], most: int) -> list[Record]:
        """Up to `most` visible records, in the order of `positions`, which are moved past them.

        Raises OffsetGone for the first partition whose position is not in its log, unless others gave records.
        """
        found: list[Record] = []
        with self.lock:
            for at, position in positions.items():
                try:
                    records, positions[at] = self._log(at).read(position, most - len(found))
                except OffsetGone as error:
                    if found:
                        break
                    raise OffsetGone(f"{at.topic}[{at.partition}]: {error}") from None
                found += records
                if len(found) == most:
                    break
        return found

    def beginning(self, at: TopicPartition) -> int:
        with self.lock:
            return self._log(at).start

    def end(self, at: TopicPartition) -> int:
        with self.lock:
            return self._log(at).end

    def last_stable(self, at: TopicPartition) -> int:
        with self.lock:
            return self._log(at).last_stable

    def committed(self, group: str, at: TopicPartition) -> int | None:
        with self.lock:
            return self._committed.get((group, at))

    def commit(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        with self.lock:
            self._committed.update({(group, at): offset for at, offset in offsets.items()})

    @contextmanager
    def waiter(self, topics: Iterable[str]) -> Iterator[Waiter]:
        """A waiter that is woken by what becomes visible in one of these topics from now on."""
        waiter = Waiter(topics)
        with self.lock:
            self._waiters.add(waiter)
        try:
            yield waiter
        finally:
            with self.lock:
                self._waiters.discard(waiter)

    def _wake(self, topics: Iterable[str]) -> None:
        for waiter in self._waiters:
            if not waiter.topics.isdisjoint(topics):
                waiter.wake()

    def _log(self, at: TopicPartition) -> PartitionLog:
        logs = self._find(at.topic).logs
        if at.partition >= len(logs):
            raise TopicMissing(partition_missing(*at))
        return logs[at.partition]

    def _find(self, topic: str) -> _Topic:
        try:
            return self._topics[topic]
        except KeyError:
            raise TopicMissing(topic_missing(topic)) from None

    def _now_ms(self) -> int:
        return int(self.clock() * 1000)


def _info(name: str, topic: _Topic) -> TopicInfo:
    return TopicInfo(name, len(topic.logs), topic.config, {**KAFKAS_DEFAULTS, **topic.config})

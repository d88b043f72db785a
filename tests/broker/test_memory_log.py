"""A partition of the in-process broker against a slow, obviously right model."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from weakref import WeakSet

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.broker import Record
from llmos_stream.broker.memory.log import PartitionLog, Policy
from llmos_stream.errors import OffsetGone

KEEP_ALL = Policy(compact=False, delete=True, retention_ms=None, retention_bytes=None, tombstone_ms=0)
COMPACT = Policy(compact=True, delete=False, retention_ms=None, retention_bytes=None, tombstone_ms=1000)


def _put(
    log: PartitionLog,
    transaction: int | None = None,
    *,
    now: int = 0,
    key: bytes | None = None,
    value: bytes | None = b"x",
) -> None:
    log.append(Record("t", 0, log.end, key, value, now), transaction)


def _offsets(log: PartitionLog) -> list[int]:
    return [record.offset for record in log.read(log.start, 1_000_000)[0]]


@dataclass
class Model:
    """Every offset ever given: the transaction it belongs to (None outside), or a marker."""

    owners: list[int | str | None] = field(default_factory=list)
    ended: dict[int, str] = field(default_factory=dict)

    def visible(self) -> list[int]:
        seen = []
        for offset, owner in enumerate(self.owners):
            if isinstance(owner, int) and owner not in self.ended:
                break
            if owner is None or (isinstance(owner, int) and self.ended[owner] == "commit"):
                seen.append(offset)
        return seen

    def last_stable(self) -> int:
        still_open = [
            offset for offset, owner in enumerate(self.owners) if isinstance(owner, int) and owner not in self.ended
        ]
        return min(still_open, default=len(self.owners))


STEPS = st.lists(st.tuples(st.sampled_from(["plain", "write", "commit", "abort"]), st.integers(0, 3)), max_size=40)


@given(STEPS, st.integers(1, 5))
def test_readers_see_what_the_model_says(steps: list[tuple[str, int]], most: int) -> None:
    log, model = PartitionLog(KEEP_ALL), Model()
    serial: dict[int, int] = {}
    for number, (step, who) in enumerate(steps):
        transaction = serial.get(who)
        if step == "plain":
            _put(log)
            model.owners.append(None)
        elif step == "write":
            transaction = serial.setdefault(who, number)
            _put(log, transaction)
            model.owners.append(transaction)
        elif transaction is not None:
            (log.commit if step == "commit" else log.abort)(transaction)
            model.owners.append("marker")
            model.ended[transaction] = step
            del serial[who]
        assert (log.end, log.last_stable) == (len(model.owners), model.last_stable())
        position, seen = 0, []
        while True:
            records, after = log.read(position, most)
            assert len(records) <= most
            seen += [record.offset for record in records]
            if after == position:
                break
            position = after
        assert seen == model.visible()
        assert position == model.last_stable()


def test_the_oldest_go_when_there_are_too_many_bytes() -> None:
    log = PartitionLog(Policy(compact=False, delete=True, retention_ms=None, retention_bytes=10_000, tombstone_ms=0))
    for _ in range(200):
        _put(log, value=bytes(900))
        assert log.bytes <= 10_000 * 9 / 8 + 1000
    log.clean(0)
    assert log.bytes <= 10_000
    assert _offsets(log) == list(range(log.start, 200))
    with pytest.raises(OffsetGone):
        log.read(log.start - 1, 1)


def test_the_oldest_go_when_they_are_too_old() -> None:
    log = PartitionLog(Policy(compact=False, delete=True, retention_ms=100, retention_bytes=None, tombstone_ms=0))
    for now in range(0, 1000, 10):
        _put(log, now=now)
        assert len(_offsets(log)) <= 14
    log.clean(990)
    assert _offsets(log) == list(range(89, 100))
    log.clean(5000)
    assert (log.start, log.end, log.bytes) == (100, 100, 0)
    assert log.read(100, 1) == ([], 100)


def test_what_an_open_transaction_holds_back_is_not_deleted() -> None:
    log = PartitionLog(Policy(compact=False, delete=True, retention_ms=100, retention_bytes=10, tombstone_ms=0))
    _put(log, 1)
    _put(log)
    log.clean(10_000)
    assert log.start == 0
    log.commit(1)
    log.clean(10_000)
    assert log.start == 2


def test_compaction_keeps_the_latest_of_each_key_and_its_offset() -> None:
    log = PartitionLog(COMPACT)
    for number in range(1000):
        _put(log, key=bytes([number % 3]), value=number.to_bytes(2))
    assert len(_offsets(log)) < 140
    log.clean(0)
    assert _offsets(log) == [997, 998, 999]
    assert log.start == 0


def test_compaction_drops_a_tombstone_once_it_is_old() -> None:
    log = PartitionLog(COMPACT)
    _put(log, key=b"a", value=b"1", now=0)
    _put(log, key=b"a", value=None, now=10)
    log.clean(500)
    assert [record.value for record in log.read(0, 10)[0]] == [None]
    log.clean(2000)
    assert log.read(0, 10) == ([], 2)
    assert log.bytes == 0


def test_compaction_leaves_open_transactions_alone() -> None:
    log = PartitionLog(COMPACT)
    _put(log, key=b"a", value=b"old")
    _put(log, 1, key=b"a", value=b"new")
    log.clean(0)
    assert [record.value for record in log.read(0, 10)[0]] == [b"old"]
    log.abort(1)
    log.clean(0)
    assert [record.value for record in log.read(0, 10)[0]] == [b"old"]


def test_a_policy_is_read_from_the_topics_configuration() -> None:
    policy = Policy.of({"cleanup.policy": "compact,delete", "retention.ms": "-1", "retention.bytes": "5000"}, 1000)
    assert policy == Policy(compact=True, delete=True, retention_ms=None, retention_bytes=1000, tombstone_ms=86_400_000)
    assert Policy.of({}, 1000) == Policy(
        compact=False, delete=True, retention_ms=604_800_000, retention_bytes=1000, tombstone_ms=86_400_000
    )


class _Store:
    """Where one value lies."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def append(self, part: memoryview) -> None:
        self._parts.append(bytes(part))

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._parts)


def test_large_values_lie_in_stores_and_are_read_a_few_at_a_time() -> None:
    stores: WeakSet[_Store] = WeakSet()

    def new() -> _Store:
        store = _Store()
        stores.add(store)
        return store

    limit, size = 24 << 20, 1 << 20
    log = PartitionLog(Policy(False, True, None, limit, 0), new)
    values = [bytes([number]) * (size if number % 2 else 10) for number in range(40)]
    for value in values:
        _put(log, value=value)
    assert len(stores) == 20
    position, seen = 0, []
    while position < log.end:
        records, position = log.read(position, 500)
        assert sum(len(record.value or b"") for record in records) <= (9 << 20)
        seen += [record.value for record in records]
    assert seen == values
    _put(log, 1, value=values[1])
    log.abort(1)
    assert len(stores) == 20
    for value in values:
        _put(log, value=value)
    assert len(stores) <= 27  # retention gives back what lies there
    assert log.bytes <= limit * 9 / 8 + size


def test_a_store_that_takes_nothing_leaves_the_log_as_it_was() -> None:
    class Full(_Store):
        def append(self, part: memoryview) -> None:
            raise OSError("no room")

    log = PartitionLog(KEEP_ALL, Full)
    _put(log)
    with pytest.raises(OSError, match="no room"):
        _put(log, 1, value=bytes(1 << 17))
    assert (log.end, log.last_stable, _offsets(log)) == (1, 1, [0])

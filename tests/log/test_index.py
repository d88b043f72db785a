"""Finding versions in the log by their heads, whatever else was written between them."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmos_stream.broker import Broker, MemoryBroker, Producer, Topics, TopicSpec
from llmos_stream.log.index import VersionIndex, version_index
from llmos_stream.types import CodecId, CodecSpec, TensorSpec, VersionHead, VersionKind
from llmos_stream.wire import message_id, pack_prelude, split
from llmos_stream.wire.control import Pointer

_CHUNK = 1024
_FULL_EVERY = 3
_FIRST = 4
"""Where the runs begin that strangers write to: who forges the very next version is not found out by his number."""


def version_head(number: int, records: int = 1, *, full: bool = True, parent: int | None = None) -> VersionHead:
    """A head whose message is of about so many records."""
    return VersionHead(
        number=number,
        parent=number - 1 if parent is None and number else parent,
        kind=VersionKind.FULL if full else VersionKind.DELTA,
        layout_digest=bytes(32),
        codec=CodecSpec(CodecId.FLOAT32),
        payload_size=1 + _CHUNK * (records - 1),
        payload_digest=bytes(32),
        weights_digest=number.to_bytes(32, "big"),
        time_ms=1_700_000_000_000,
        tensors=(TensorSpec("w", (5,), "float32"),) if full else None,
    )


def records_of(head: VersionHead, sender: str = "aggregator") -> list[bytes]:
    payload = [bytes(head.payload_size)]
    return list(split(pack_prelude(head), payload, head.payload_size, message_id(sender, head.number), _CHUNK))


@dataclass
class Log:
    """A topic of versions that is written record by record."""

    broker: Broker
    topic: str
    producer: Producer

    async def publish(self, head: VersionHead, stray: Sequence[tuple[bytes | None, bytes]] = ()) -> Pointer:
        """As the aggregator does it, while another producer writes `stray` between its records."""
        first, *others = records_of(head)
        key = str(head.number).encode()
        async with self.producer.transaction() as transaction:
            sent = await transaction.send(self.topic, first, key=key, partition=0)
            for record in others:
                await self.write(*stray)
                await transaction.send(self.topic, record, key=key, partition=0)
        return Pointer(head.number, 0, sent.offset)

    async def write(self, *records: tuple[bytes | None, bytes]) -> None:
        """Records of a stranger."""
        async with self.broker.producer() as producer:
            for key, value in records:
                await producer.send(self.topic, value, key=key, partition=0)

    async def run(self, numbers: range, most_records: int = 4) -> dict[int, Pointer]:
        """Publish versions, every third of them full; where each begins, with what it stands on."""
        places: dict[int, Pointer] = {}
        full: Pointer | None = None
        for number in numbers:
            is_full = number % _FULL_EVERY == 0
            at = await self.publish(version_head(number, 1 + number % most_records, full=is_full))
            full = at if is_full else full
            places[number] = at if is_full else replace(at, full=full)
        return places

    @asynccontextmanager
    async def index(self) -> AsyncIterator[VersionIndex]:
        async with version_index(self.broker, self.topic) as index:
            yield index


@asynccontextmanager
async def a_log(broker: Broker, federation: str = "trial", **config: str) -> AsyncIterator[Log]:
    topic = Topics(federation).models
    await broker.create_topics([TopicSpec(topic, 1, config)])
    async with broker.producer(f"{federation}-writer") as producer:
        yield Log(broker, topic, producer)


async def numbers(index: VersionIndex, to: int | None = None) -> list[int]:
    return [version.head.number async for version, _ in index.walk(to)]


async def holds(index: VersionIndex, places: dict[int, Pointer]) -> None:
    """Every way of asking gives these versions, and no other."""
    assert [(found.head.number, at) async for found, at in index.walk()] == list(places.items())
    for number, at in places.items():
        found = await index.find(number)
        assert found is not None
        assert (found.head.number, found.offset) == (number, at.offset)
        assert await index.stands_on(found) == at
        assert await index.at(at) == found
    assert await index.find(min(places) - 1) is None
    assert await index.find(max(places) + 1) is None
    oldest, newest = await index.oldest(), await index.newest()
    assert oldest is not None
    assert newest is not None
    assert (oldest.head.number, newest.head.number) == (min(places), max(places))


async def test_a_log_is_gone_through_and_looked_up(broker: Broker, federation: str) -> None:
    async with a_log(broker, federation) as log:
        places = await log.run(range(20))
        async with log.index() as index:
            await holds(index, places)
            assert await numbers(index, 1) == [0, 1]
            assert await numbers(index, 25) == list(range(20))
            found = [at async for _, at in index.walk(11)]
            assert found == [places[number] for number in range(12)]


async def test_an_empty_topic_holds_no_version(broker: Broker, federation: str) -> None:
    async with a_log(broker, federation) as log, log.index() as index:
        assert await numbers(index) == []
        assert await index.find(0) is None
        assert (await index.oldest(), await index.newest()) == (None, None)
        assert await index.at(Pointer(0, 0, 0)) is None


async def test_one_version_alone(federation: str) -> None:
    async with a_log(MemoryBroker()) as log:
        places = {7: await log.publish(version_head(7, 3))}
        async with log.index() as index:
            await holds(index, places)


async def test_deltas_whose_full_version_is_gone_have_no_place() -> None:
    async with a_log(MemoryBroker()) as log:
        places = await log.run(range(4, 9))
        async with log.index() as index:
            assert [at async for _, at in index.walk()] == [None, None, *(places[number] for number in (6, 7, 8))]
            for number, at in ((4, None), (5, None), (8, places[8])):
                found = await index.find(number)
                assert found is not None
                assert await index.stands_on(found) == at


FOREIGN = {
    "rubbish": (None, b"what is this"),
    "a key without a chunk": (b"9", b""),
    "2^64": (b"18446744073709551616", records_of(version_head(9))[0]),
    "huge": (b"9" * 10_000, records_of(version_head(9))[0]),
    "negative": (b"-3", records_of(version_head(3))[0]),
    "no number": (b"three", records_of(version_head(3))[0]),
    "no text": (b"\xff\xfe", records_of(version_head(3))[0]),
    "signed": (b"+3", records_of(version_head(3))[0]),
    "spaced": (b" 3", records_of(version_head(3))[0]),
    "underscored": (b"1_0", records_of(version_head(10))[0]),
    "other digits": ("٣".encode(), records_of(version_head(3))[0]),
    "no key": (None, records_of(version_head(3))[0]),
    "a key that lies low": (b"1", records_of(version_head(9))[0]),
    "a key that lies high": (b"4000000000000000000", records_of(version_head(9))[0]),
    "a version of no run": (b"500", records_of(version_head(500))[0]),
    "an old version again": (b"2", records_of(version_head(2), "stranger")[0]),
    "a delta of no run": (b"77", records_of(version_head(77, full=False))[0]),
    "longer than the log": (b"500", records_of(version_head(500, 100_000))[0]),
    "as long as four versions": (b"500", records_of(version_head(500, 14))[0]),
    "the middle of nothing": (b"5", records_of(version_head(5, 9), "stranger")[6]),
    "the end of nothing": (b"5", records_of(version_head(5, 9), "stranger")[-1]),
    "another chunk of a head": (b"5", records_of(version_head(5, 9), "stranger")[0][:200]),
}


@pytest.mark.parametrize("name", FOREIGN)
async def test_what_a_stranger_wrote_leads_nobody_astray(name: str) -> None:
    """Wherever it lies: between two versions, within one, in the middle, at the beginning and at the end."""
    async with a_log(MemoryBroker()) as log:
        places = {}
        await log.write(FOREIGN[name])
        for number in range(_FIRST, _FIRST + 12):
            head = version_head(number, 1 + number % 4)
            places[number] = await log.publish(head, [FOREIGN[name]] if number == 11 else [])
            if number in (7, 8, 10, 13):
                await log.write(FOREIGN[name])
        await log.write(FOREIGN[name])
        async with log.index() as index:
            await holds(index, places)


async def test_more_of_a_stranger_than_of_the_run() -> None:
    async with a_log(MemoryBroker()) as log:
        await log.write(*list(FOREIGN.values()) * 5)
        places = {}
        for number in range(_FIRST, _FIRST + 3):
            places[number] = await log.publish(version_head(number, 3), list(FOREIGN.values()))
            await log.write(*list(FOREIGN.values()) * 5)
        async with log.index() as index:
            await holds(index, places)


@pytest.mark.parametrize("count", [0, 1, 300])
async def test_nothing_but_rubbish(count: int) -> None:
    async with a_log(MemoryBroker()) as log:
        await log.write(*[FOREIGN["rubbish"], FOREIGN["negative"], FOREIGN["the middle of nothing"]] * count)
        async with log.index() as index:
            assert await numbers(index) == []
            assert await index.newest() is None
            assert await index.find(5) is None


async def test_what_retention_has_deleted_the_beginning_of() -> None:
    broker = MemoryBroker()
    async with a_log(broker, **{"retention.bytes": "30000"}) as log:
        places = await log.run(range(60))
        broker.clean()
        async with log.index() as index:
            kept = await numbers(index)
            assert 3 < len(kept) < 50
            assert kept == list(range(kept[0], 60))
            for number in range(60):
                found = await index.find(number)
                assert (found is not None) == (number >= kept[0])
                assert found is None or found.offset == places[number].offset


async def test_what_compaction_left_of_messages_is_no_version() -> None:
    broker = MemoryBroker()
    async with a_log(broker, **{"cleanup.policy": "compact"}) as log:
        await log.run(range(8))
        broker.clean()
        async with log.index() as index:
            left = await numbers(index)
            assert left == [0, 4]  # of one record each
            for number in range(8):
                assert (await index.find(number) is not None) == (number in left)


@pytest.mark.parametrize("ask", ["find", "walk", "newest", "stands_on"])
async def test_retention_that_goes_on_meanwhile(ask: str) -> None:
    broker = MemoryBroker()
    async with a_log(broker, **{"retention.bytes": "60000"}) as log:
        await log.run(range(40))
        async with log.index() as index:
            last = await index.find(37)
            assert last is not None
            await log.run(range(40, 120))
            broker.clean()
            if ask == "find":
                assert [await index.find(number) for number in range(-1, 41)] == [None] * 42
            elif ask == "walk":
                assert await numbers(index) == []
            elif ask == "newest":
                assert await index.newest() is None
            else:
                assert await index.stands_on(last) is None
        async with log.index() as index:
            assert (await numbers(index))[-1] == 119


_ANY = st.one_of(
    st.integers(1, 5),  # a version of so many records
    st.sampled_from(sorted(FOREIGN)),
)


@settings(max_examples=200)
@given(st.lists(_ANY, max_size=14), st.integers(_FIRST, _FIRST + 3))
@example([1, "a version of no run", 3, 1], _FIRST)
def test_any_log_is_read_as_it_was_written(written: list[int | str], first: int) -> None:
    async def check() -> None:
        async with a_log(MemoryBroker()) as log:
            places: dict[int, Pointer] = {}
            number, full = first, None
            for item in written:
                if isinstance(item, str):
                    await log.write(FOREIGN[item])
                    continue
                is_full = number % _FULL_EVERY == 0
                at = await log.publish(version_head(number, item, full=is_full))
                full = at if is_full else full
                places[number] = at if is_full else replace(at, full=full)
                number += 1
            if len(places) < 2:  # one alone is as believable as what a stranger wrote
                return
            async with log.index() as index:
                found = [(version.head.number, version.offset) async for version, _ in index.walk()]
                assert found == [(number, at.offset) for number, at in places.items()]
                for number, at in places.items():
                    one = await index.find(number)
                    assert one is not None
                    assert one.offset == at.offset
                    whole = at if one.head.kind is VersionKind.FULL or at.full is not None else None
                    assert await index.stands_on(one) == whole
                newest = await index.newest()
                assert newest is not None
                assert newest.head.number == max(places)

    asyncio.run(check())


async def test_what_others_wrote_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    async with a_log(MemoryBroker()) as log:
        await log.run(range(4))
        await log.write(FOREIGN["rubbish"], FOREIGN["2^64"], FOREIGN["a version of no run"])
        await log.run(range(4, 6))
        async with log.index() as index:
            assert await numbers(index) == list(range(6))
    assert caplog.messages == ["passed over what others wrote in trial.models, in 3 places"]

"""What a hook around a broker can do, and what a broker then looks like to those who use it."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from llmos_stream.broker import Broker, Record, TopicPartition, TopicSpec
from llmos_stream.errors import BrokerUnavailable
from llmos_stream.testing import Call, FaultyBroker

_SECONDS = 60.0


@pytest.fixture
async def faulty(broker: Broker, federation: str) -> AsyncIterator[FaultyBroker]:
    """Either broker, with one topic, and faults to come. The broker's own fixture closes it."""
    await broker.create_topics([TopicSpec(federation, 1)])
    faulty = FaultyBroker(broker)
    yield faulty
    await faulty.give_up_transactions()


class Noted:
    """Notes what is asked of a broker."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    async def __call__(self, call: Call) -> Any:
        self.calls.append((call.operation, call.topics))
        return await call.proceed()


async def _values(broker: Broker, topic: str, count: int) -> list[bytes | None]:
    found: list[Record] = []
    async with broker.reader([topic], start="earliest") as reader, asyncio.timeout(_SECONDS):
        while len(found) < count:
            found += await reader.poll(1.0)
    return [record.value for record in found]


async def test_a_hook_sees_every_use_in_order(faulty: FaultyBroker, federation: str) -> None:
    faulty.around = noted = Noted()
    async with faulty.producer(f"{federation}-id") as producer, producer.transaction() as transaction:
        await transaction.send(federation, b"a")
        await transaction.send_all(federation, [b"b", b"c"])
        await transaction.send_offsets("group", {TopicPartition(federation, 0): 1})
    with pytest.raises(ZeroDivisionError):
        async with faulty.producer(f"{federation}-id") as producer, producer.transaction():
            raise ZeroDivisionError
    assert await _values(faulty, federation, 3) == [b"a", b"b", b"c"]
    topics = (federation,)
    assert [call for call in noted.calls if call[0] != "poll"] == [
        ("open", ()),
        ("begin_transaction", ()),
        ("send", topics),
        ("send_all", topics),
        ("send_offsets", topics),
        ("commit_transaction", topics),
        ("close", ()),
        ("open", ()),
        ("begin_transaction", ()),
        ("abort_transaction", ()),
        ("close", ()),
        ("open", topics),
        ("close", topics),
    ]
    assert ("poll", topics) in noted.calls


async def test_it_drops_delays_changes_and_refuses(faulty: FaultyBroker, federation: str) -> None:
    refused, may_pass = asyncio.Event(), asyncio.Event()

    async def hook(call: Call) -> Any:
        match call.arguments.get("value"):
            case b"dropped":
                return None
            case b"delayed":
                refused.set()
                await may_pass.wait()
            case b"changed":
                call.arguments["value"] = b"other"
            case b"refused":
                await refused.wait()
                raise BrokerUnavailable("gone")
            case b"unheard":
                await call.proceed()
                raise BrokerUnavailable("gone")
        return await call.proceed()

    faulty.around = hook
    async with faulty.producer() as producer, asyncio.TaskGroup() as group:
        await producer.send(federation, b"dropped")
        delayed = group.create_task(producer.send(federation, b"delayed"))
        with pytest.raises(BrokerUnavailable, match="gone"):
            await producer.send(federation, b"refused")
        await producer.send(federation, b"changed")
        with pytest.raises(BrokerUnavailable, match="gone"):
            await producer.send(federation, b"unheard")
        assert not delayed.done()
        may_pass.set()
    assert await _values(faulty, federation, 3) == [b"other", b"unheard", b"delayed"]


async def test_it_rewinds_a_reader(faulty: FaultyBroker, federation: str) -> None:
    async with faulty.producer() as producer:
        await producer.send(federation, b"once")
    again = True

    async def rewind(call: Call) -> Any:
        nonlocal again
        found = await call.proceed()
        if call.operation == "poll" and found and again:
            again = False
            await call.target.seek_to_beginning()
        return found

    faulty.around = rewind
    assert await _values(faulty, federation, 2) == [b"once", b"once"]


@pytest.mark.parametrize("operation", ["commit_transaction", "abort_transaction"])
async def test_a_transaction_that_is_lost_stays_open_until_a_newer_producer_comes(
    faulty: FaultyBroker, federation: str, operation: str
) -> None:
    async def lose(call: Call) -> Any:
        if call.operation == operation:
            raise BrokerUnavailable("lost")
        return await call.proceed()

    async def write() -> None:
        async with faulty.producer(f"{federation}-id") as producer, producer.transaction() as transaction:
            await transaction.send(federation, b"lost")
            if operation == "abort_transaction":
                raise ZeroDivisionError

    faulty.around = lose
    at = TopicPartition(federation, 0)
    with pytest.raises(BrokerUnavailable, match="lost"):
        await write()
    async with faulty.producer() as producer, faulty.reader([federation], start="earliest") as reader:
        await producer.send(federation, b"after")
        assert (await reader.end_offsets())[at] == 0  # nobody sees past what is neither committed nor aborted
        async with faulty.producer(f"{federation}-id"):
            pass
        assert await _values(faulty, federation, 1) == [b"after"]


async def test_a_commit_that_nobody_heard_of_holds(faulty: FaultyBroker, federation: str) -> None:
    async def unheard(call: Call) -> Any:
        result = await call.proceed()
        if call.operation == "commit_transaction":
            assert call.topics == (federation,)
            raise BrokerUnavailable("unheard")
        return result

    faulty.around = unheard
    with pytest.raises(BrokerUnavailable, match="unheard"):
        async with faulty.producer(f"{federation}-id") as producer, producer.transaction() as transaction:
            await transaction.send(federation, b"there")
    assert await _values(faulty, federation, 1) == [b"there"]

"""The source of updates: one pass, bounded memory, never a wait for what cannot come."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker, TopicSpec
from llmos_stream.codec import Layout, decode, encode
from llmos_stream.config import load
from llmos_stream.log.updates import decode_update
from llmos_stream.replay import updates
from llmos_stream.replay.index import UpdateMissing
from llmos_stream.replay.updates import RecordedUpdates
from llmos_stream.testing import Call, FaultyBroker
from llmos_stream.types import Contribution, UpdateHead
from tests.roles.aids import FLOAT32, records_of, update_head

NUMEL = 2000


def _layout(numel: int = NUMEL) -> Layout:
    return Layout.of({"w": torch.zeros(numel)})


CHUNK = 1024


def _contribution(head: UpdateHead, partition: int, offset: int) -> Contribution:
    return Contribution(
        head.client_id, head.sequence, partition, offset, head.num_examples, 0, 1.0, 1.0, head.payload_digest
    )


def _delta(number: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(number))


def _message(number: int, numel: int = NUMEL) -> tuple[UpdateHead, list[bytes]]:
    payload = list(encode(torch.randn(numel, generator=torch.Generator().manual_seed(number)), FLOAT32))
    head = update_head(payload, client_id=f"c{number}", sequence=number)
    return head, records_of(head, payload, CHUNK)


async def _interleaved(broker: Broker, topic: str, count: int, **options: Any) -> list[Contribution]:
    """`count` updates whose chunks come in turn, over two partitions; in the order in which they are complete."""
    await broker.create_topics([TopicSpec(topic, 2)])
    messages = [_message(number, **options) for number in range(count)]
    begun: dict[int, Contribution] = {}
    async with broker.producer() as producer:
        for place in range(max(len(records) for _, records in messages)):
            for number, (head, records) in enumerate(messages):
                if place < len(records):
                    sent = await producer.send(topic, records[place], key=b"k", partition=number % 2)
                    begun.setdefault(number, _contribution(head, sent.partition, sent.offset))
    return list(begun.values())


async def _seven_at_once(call: Call) -> Any:
    if call.operation == "poll":
        call.arguments["max_records"] = 7
    return await call.proceed()


async def _taken(source: RecordedUpdates, items: Sequence[Contribution]) -> list[int]:
    """Which update each contribution gave, told by its delta."""
    found = []
    for item in items:
        delta = decode_update(await source.take(item), NUMEL).delta
        assert not isinstance(delta, torch.Tensor)
        flat = torch.cat([part.clone() for part in delta.slices()])
        found.append(next(number for number in range(len(items)) if torch.equal(flat, _delta(number))))
    return found


async def test_interleaved_messages_are_read_in_one_pass(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = await _interleaved(broker, federation, 8)
    async with FaultyBroker(broker, _seven_at_once).reader([federation], start="latest") as reader:
        seek = mock.Mock(side_effect=reader.seek)
        monkeypatch.setattr(reader, "seek", seek)
        source = RecordedUpdates(reader, items, _layout().fragments(1), load().wire)
        await source.begin()
        assert await _taken(source, items) == list(range(8))
        assert seek.call_count == 2  # to the first of each partition


@pytest.mark.parametrize("keep_bytes", [1, 20_000])
async def test_what_does_not_fit_is_sought_again(
    federation: str, monkeypatch: pytest.MonkeyPatch, keep_bytes: int
) -> None:
    broker = MemoryBroker()
    items = await _interleaved(broker, federation, 8)
    async with FaultyBroker(broker, _seven_at_once).reader([federation], start="latest") as reader:
        seek = mock.Mock(side_effect=reader.seek)
        monkeypatch.setattr(reader, "seek", seek)
        monkeypatch.setattr(updates, "_KEEP_BYTES", keep_bytes)
        source = RecordedUpdates(reader, items, _layout().fragments(1), load().wire)
        await source.begin()
        assert await _taken(source, items) == list(range(8))
        assert seek.call_count > 2


async def test_any_order_will_do(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(updates, "_KEEP_BYTES", 1)
    broker = MemoryBroker()
    items = await _interleaved(broker, federation, 6)
    async with broker.reader([federation], start="latest") as reader:
        source = RecordedUpdates(reader, items, _layout().fragments(1), load().wire)
        await source.begin()
        assert await _taken(source, items[::-1]) == [5, 4, 3, 2, 1, 0]


async def test_an_update_that_is_always_pushed_out_is_read_alone(federation: str) -> None:
    """More is in progress at a time than may be held: 5 x 400 kB, of 1 MiB."""
    broker, numel = MemoryBroker(), 100_000
    items = await _interleaved(broker, federation, 5, numel=numel)
    wire = load({"wire": {"pending_bytes": 1 << 20}}).wire
    async with broker.reader([federation], start="latest") as reader:
        source = RecordedUpdates(reader, items, _layout(numel).fragments(1), wire)
        await source.begin()
        for number, item in enumerate(items):
            message = await source.take(item)
            assert torch.equal(
                decode(message.parts, FLOAT32, numel),
                torch.randn(numel, generator=torch.Generator().manual_seed(number)),
            )


async def test_an_update_that_never_completes_is_not_waited_for(broker: Broker, federation: str) -> None:
    await broker.create_topics([TopicSpec(federation, 1)])
    head, records = _message(0)
    async with broker.producer() as producer:
        sent = await producer.send_all(federation, records[:-1], partition=0)
    item = _contribution(head, 0, sent.offset)
    async with broker.reader([federation], start="latest") as reader:
        source = RecordedUpdates(reader, [item], _layout().fragments(1), load().wire)
        await source.begin()
        with pytest.raises(UpdateMissing, match=rf"c0/0 at {federation}\[0\] offset 0 is not complete") as caught:
            await source.take(item)
    assert not caught.value.gone


async def test_what_lies_elsewhere_or_is_another_is_said_to_be(federation: str) -> None:
    broker = MemoryBroker()
    await broker.create_topics([TopicSpec(federation, 1)])
    head, records = _message(0)
    other, _ = _message(1)
    async with broker.producer() as producer:
        await producer.send_all(federation, records, partition=0)
    wrong = [
        (_contribution(other, 0, 0), "not what the manifest names: update c0/0 with payload .* is there"),
        (_contribution(head, 0, 1), "not what the manifest names: "),
        (_contribution(head, 0, 99), "is beyond the end"),
        (_contribution(head, 3, 0), "the topic has no such partition"),
    ]
    async with broker.reader([federation], start="latest") as reader:
        for item, message in wrong:
            source = RecordedUpdates(reader, [item], _layout().fragments(1), load().wire)
            await source.begin()
            with pytest.raises(UpdateMissing, match=message):
                await source.take(item)


async def test_an_update_larger_than_the_layout_needs_is_not_collected(federation: str) -> None:
    broker = MemoryBroker()
    items = await _interleaved(broker, federation, 1)
    async with broker.reader([federation], start="latest") as reader:
        source = RecordedUpdates(reader, items, _layout(10).fragments(1), load().wire)
        await source.begin()
        with pytest.raises(UpdateMissing, match=r"payload of .* bytes, at most"):
            await source.take(items[0])


async def test_retention_that_overtakes_the_walk_is_said(federation: str) -> None:
    """The first was there at the start, and is deleted before it is read."""
    broker = MemoryBroker()
    now = [1_000_000.0]
    broker = MemoryBroker(clock=lambda: now[0])
    await broker.create_topics([TopicSpec(federation, 1, {"retention.ms": "60000"})])
    items = []
    async with broker.producer() as producer:
        for number in range(3):
            head, records = _message(number)
            sent = await producer.send_all(federation, records, partition=0)
            items.append(_contribution(head, 0, sent.offset))
            now[0] += 50
    async with broker.reader([federation], start="latest") as reader:
        source = RecordedUpdates(reader, items, _layout().fragments(1), load().wire)
        await source.begin()
        broker.clean()
        with pytest.raises(UpdateMissing, match="has been deleted by retention") as caught:
            await source.take(items[0])
        assert caught.value.gone
        assert decode_update(await source.take(items[2]), NUMEL).head.client_id == "c2"

"""Records that nobody of the federation wrote, in every topic: each role counts them, passes them over and goes on."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import Any

import orjson
import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.log import Pointer, visibility
from llmos_stream.log.control import open_control
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import newest_version
from llmos_stream.log.versions import Origin, Version, encode_version
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import Call, FaultyBroker, RunningFederation
from llmos_stream.wire import message_id, pack_prelude, split
from llmos_stream.wire.control import (
    AGGREGATOR,
    LATEST,
    PAUSED,
    PROMOTED,
    RUN,
    STATE,
    RunEnd,
    dump_run_end,
    dump_setting,
    sequences_key,
)
from tests.roles.aids import LAYOUT, NUMEL, aggregator, delta_of, settings_for, update

RUBBISH = (
    b"garbage",
    b"",
    None,
    b"[" * 1000 + b"]" * 1000,
    b'{"version":1,"partition":0,"offset":0,"full":' * 1200 + b"null" + b"}" * 1200,
    b'{"version": 1e300, "partition": 7, "offset": -1, "full": null, "term": 18446744073709551615, "instance": "x"}',
    b'{"version": 18446744073709551615, "partition": 0, "offset": 18446744073709551615, "state": "finished"}',
    b'{"version": "1", "paused": "no", "term": true, "instance": [], "left": 3, "lag": 1e99, "snapshots": {"a": -1}}',
)
KEYS = (LATEST, STATE, AGGREGATOR, RUN, PAUSED, PROMOTED, sequences_key("a"), b"sequences/\xff\xfe", b"other", None)


async def _litter(broker: Broker, topics: Topics) -> None:
    async with broker.producer() as producer:
        for topic in topics.names:
            for key in KEYS:
                for value in RUBBISH:
                    if not (topic == topics.control and key is None) and not (value is None and key is None):
                        await producer.send(topic, value, key=key)


Follow = Callable[[], Awaitable[Version]]


@contextlib.asynccontextmanager
async def _late(broker: Broker, settings: Settings) -> AsyncIterator[Follow]:
    """A reader that comes now: gives the newest version each time that it is asked."""
    async with Offload(1) as offload:
        federation = Federation(broker, Topics(settings.federation.name), settings.wire, offload, Shutdown())
        async with federation.control() as control, federation.reader(federation.topics.models, "latest") as reader:
            replica = federation.replica(reader)

            async def follow() -> Version:
                while True:
                    await control.poll(0.1)
                    if (version := await newest_version(control, replica, 20.0)) is not None:
                        return version

            yield follow


async def _reach(follow: Follow, number: int, running: RunningFederation) -> Version:
    """The version of this number, once it is there. Fails when the aggregator has failed."""
    while (version := await follow()).head.number < number:
        assert not running.task.done()
    return replace(version, weights=version.weights.clone())


@contextlib.asynccontextmanager
async def _reader_of(broker: Broker, settings: Settings) -> AsyncIterator[tuple[RunningFederation, Follow]]:
    """A running aggregator, and a reader that holds its first version."""
    async with aggregator(broker, settings) as running:
        await running.version(0)
        async with _late(broker, settings) as follow:
            yield running, follow


async def _forge(running: RunningFederation, number: int, parent: int | None, **changes: object) -> Pointer:
    """A full version of somebody else's weights, good in itself."""
    origin = Origin(parent, (), {"staleness": {"maximum": 20}}, 0)
    head, parts = encode_version(number, torch.full((NUMEL,), 0.777), LAYOUT, origin)
    head = replace(head, **changes)  # type: ignore[arg-type]
    records = split(pack_prelude(head), parts, head.payload_size, message_id("evil", number), chunk_bytes=1 << 16)
    async with running.broker.producer() as producer:
        sent = await producer.send_all(running.topics.models, records, key=str(number).encode(), partition=0)
    return Pointer(number, 0, sent.offset)


async def _point(running: RunningFederation, pointer: Pointer) -> None:
    async with running.broker.producer() as producer:
        await producer.send(running.topics.control, dump_setting(pointer), key=LATEST)


async def test_rubbish_in_every_topic_stops_no_aggregator(broker: Broker, federation: str) -> None:
    """While it runs and when it starts again."""
    settings = settings_for(federation)
    async with _reader_of(broker, settings) as (running, follow):
        await _litter(broker, running.topics)
        await running.send(update(delta_of(1.0)))
        await _reach(follow, 1, running)
        await _litter(broker, running.topics)
    async with aggregator(broker, settings) as running, _late(broker, settings) as follow:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        version = await _reach(follow, 2, running)
        await _litter(broker, running.topics)
        await running.send(update(delta_of(1.0), sequence=2, base_version=2))
        await _reach(follow, 3, running)
    assert torch.equal(version.weights, delta_of(2.0))


@pytest.mark.parametrize("term", [5, 1 << 20, (1 << 20) + 2, 2**53, 2**63 - 1, 2**64 - 1, 0])
@pytest.mark.parametrize("left", [False, True])
async def test_a_forged_term_ends_no_leader(federation: str, term: int, left: bool) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        async with broker.producer() as producer:
            value = orjson.dumps({"term": term, "instance": "evil", "left": left})
            await producer.send(running.topics.control, value, key=AGGREGATOR)
        for number in range(3):
            await running.send(update(delta_of(1.0), sequence=number, base_version=number))
            await running.version(number + 1)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=3, base_version=3))
        await running.version(4)


FORGED = {
    "the next number": (1, 0, {}),
    "the next number, a wrong digest of its parent": (1, 0, {"parent_digest": bytes(32)}),
    "no parent": (1, None, {}),
    "a number far ahead": (10**15, 10**15 - 1, {}),
    "a number that skips one": (2, 0, {}),
    "the same number": (0, None, {}),
}


@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("what", FORGED)
async def test_a_forged_version_is_not_taken(federation: str, what: str, announced: bool) -> None:
    """Neither by who holds the one before, nor by who comes late, nor by the aggregator that starts again."""
    broker, settings = MemoryBroker(), settings_for(federation, versions={"full_every": 2})
    number, parent, changes = FORGED[what]
    async with _reader_of(broker, settings) as (running, follows):
        assert (await follows()).head.number == 0
        forged = await _forge(running, number, parent, **changes)
        if announced:
            await _point(running, forged)
            for _ in range(5):
                assert (await follows()).head.number == 0
            async with _late(broker, settings) as late:
                assert (await late()).head.number == 0
        for sent in range(3):
            await running.send(update(delta_of(1.0), sequence=sent, base_version=sent))
            await running.version(sent + 1)
        assert torch.allclose((await _reach(follows, 3, running)).weights, delta_of(3.0), atol=0.02)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=3, base_version=3))
        await running.version(4)
    async with _late(broker, settings) as late:
        assert torch.allclose((await late()).weights, delta_of(4.0), atol=0.02)


@pytest.mark.parametrize("offset", [0, 10**6, 2**62])
async def test_a_pointer_to_nothing_leads_nobody_astray(
    federation: str, offset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visibility, "PROMPT_SECONDS", 0.5)
    broker, settings = MemoryBroker(), settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    await _point(running, Pointer(2, 0, offset))
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        await running.version(2)
    async with _late(broker, settings) as late:
        assert torch.equal((await late()).weights, delta_of(2.0))


async def test_a_version_behind_an_open_transaction_is_not_made_again(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever takes over sees its pointer and not yet the version."""
    monkeypatch.setattr(visibility, "PROMPT_SECONDS", 0.0)
    settings, looked = settings_for(federation), asyncio.Event()

    async def note(call: Call) -> Any:
        if call.operation == "end_offsets" and call.arguments["undecided"]:
            looked.set()
        return await call.proceed()

    async with broker.producer(f"{federation}-other") as other:
        async with contextlib.AsyncExitStack() as stack:
            async with aggregator(broker, settings) as running:
                await running.version(0)
                transaction = await stack.enter_async_context(other.transaction())
                await transaction.send(running.topics.models, b"rubbish", partition=0)
                await running.send(update(delta_of(1.0)))
                async with open_control(broker, running.topics) as control:
                    while control.latest is None or control.latest.version < 1:
                        await control.poll(0.1)
            restarted = asyncio.create_task(_goes_on(FaultyBroker(broker, note), settings))
            await asyncio.wait_for(looked.wait(), 60)
            await asyncio.wait([restarted], timeout=0.3)
            assert not restarted.done()
        assert await restarted == [b"0", None, b"1", b"2"]


async def _goes_on(broker: Broker, settings: Settings) -> list[bytes | None]:
    """The keys of what is in the topic of versions once there is another one."""
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        return [record.key for record in await running.read(running.topics.models, 4)]


async def _written_under(running: RunningFederation, key: bytes, last: bytes, count: int = 3) -> list[bytes | None]:
    """The values under the key of the control topic, once there are `count` under `last`, the last written again."""
    found: list[tuple[bytes | None, bytes | None]] = []
    async with running.broker.reader([running.topics.control], start="earliest") as reader:
        while sum(name == last for name, _ in found) < count:
            found += [(record.key, record.value) for record in await reader.poll(0.1)]
            assert not running.task.done()
    return [value for name, value in found if name == key]


@pytest.mark.parametrize("name", [b"\xff\xfe", b"", b"-a", b"a" * 129, "\u00e4".encode()])
async def test_what_lies_under_the_name_of_no_client_is_not_written_again(federation: str, name: bytes) -> None:
    """The aggregator could not read there what it wrote itself, and would write it again and again."""
    broker, settings = MemoryBroker(), settings_for(federation)
    key = sequences_key("") + name
    async with aggregator(broker, settings) as running:
        await running.version(0)
        async with broker.producer() as producer:
            await producer.send(running.topics.control, b"[-1]", key=key)
            await producer.send(running.topics.control, b"rubbish", key=LATEST)
        assert await _written_under(running, key, LATEST) == [b"[-1]"]


@pytest.mark.parametrize("window", [b"[5, 1, 2]", b"[9]", b"[4611686018427387905, 0, 1]", b"rubbish"])
@pytest.mark.parametrize("leads", [True, False])
async def test_a_window_that_is_none_is_written_again(federation: str, window: bytes, leads: bool) -> None:
    """By the aggregator that leads, and by the next one, which goes by the last that is a window."""
    broker, settings, key = MemoryBroker(), settings_for(federation), sequences_key("a")

    async def forge(topic: str) -> None:
        async with broker.producer() as producer:
            await producer.send(topic, window, key=key)

    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    if not leads:
        await forge(running.topics.control)
    async with aggregator(broker, settings) as running:
        if leads:
            await running.send(update(delta_of(1.0), sequence=1, base_version=1))
            await running.version(2)
            await forge(running.topics.control)
        number = 3 if leads else 2
        *honest, forged, again = await _written_under(running, key, key, number + 1)
        assert (forged, again) == (window, honest[-1])
        await running.send(update(delta_of(5.0)))  # a repeat
        await running.send(update(delta_of(1.0), sequence=number, base_version=number - 1))
        version = await running.version(number)
    assert torch.equal(version.weights, delta_of(float(number)))


async def test_a_forged_end_of_the_run_is_taken_back(broker: Broker, federation: str) -> None:
    """By the aggregator that leads: whoever comes then takes part."""
    settings = settings_for(federation)
    forged = dump_run_end(RunEnd("target", "it is reached", 0))
    async with aggregator(broker, settings) as running:
        await running.version(0)
        async with running.federation.control() as control, broker.producer() as producer:
            await producer.send(running.topics.control, forged, key=RUN)
            while not control.has_ended or control.finished is not None:
                await control.poll(0.1)
                assert not running.task.done()
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        await running.version(2)


async def test_a_state_that_leads_to_nothing_costs_the_moments_alone(federation: str) -> None:
    broker, settings = MemoryBroker(), settings_for(federation, server_optimizer={"name": "adam"})
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)
    control = await running.read(running.topics.control, 1)
    assert control
    async with broker.reader([running.topics.control], start="earliest") as reader:
        records = [record for record in await reader.poll(1.0) if record.key == STATE and record.value]
    forged = orjson.loads(records[-1].value or b"") | {"snapshots": {"first_moment": 0, "second_moment": 10**9}}
    async with broker.producer() as producer:
        await producer.send(running.topics.snapshots, b"garbage", key=b"x")
        await producer.send(running.topics.control, orjson.dumps(forged), key=STATE)
        await producer.send(running.topics.control, b"[5, 1, 2]", key=sequences_key("b"))
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        await running.version(2)

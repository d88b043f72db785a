"""Readers of a chain of versions, on both brokers: each gets the bytes a version names, wherever it comes from."""

import asyncio
import contextlib
import threading
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker, Reader, Topics
from llmos_stream.codec import weights_digest
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerUnavailable, OffsetGone, Reason, Rejected
from llmos_stream.log import ControlView, Pointer, visibility
from llmos_stream.log import replica as replica_module
from llmos_stream.log.own_versions import remember
from llmos_stream.log.replica import Follower, Replica, newest_version
from llmos_stream.log.versions import Version
from llmos_stream.runtime import Offload
from llmos_stream.testing import Call, FaultyBroker
from llmos_stream.types import Part, VersionHead, VersionKind
from llmos_stream.wire import message_id, pack_prelude, split
from llmos_stream.wire.control import LATEST, dump_setting
from tests.federation import decoded_versions, read_versions
from tests.roles.aids import NUMEL, aggregator, settings_for, update

_SECONDS = 60.0


def _settings(federation: str) -> Settings:
    return settings_for(federation, versions={"full_every": 4}, wire={"chunk_bytes": 1024})


async def _write(broker: Broker, settings: Settings, versions: int) -> list[Pointer]:
    """A run of noise; where each version lies."""
    generator = torch.Generator().manual_seed(1)
    pointers: list[Pointer] = []
    control_topic = Topics(settings.federation.name).control
    async with aggregator(broker, settings) as running, broker.reader([control_topic], start="earliest") as reader:
        control = ControlView(reader)
        for number in range(versions + 1):
            while control.latest is None or control.latest.version < number:
                await control.poll(0.1)
            pointers.append(control.latest)
            delta = torch.randn(NUMEL, generator=generator)
            if number < versions:
                await running.send(update(delta, sequence=number, base_version=number))
    return pointers


async def _digests(broker: Broker, settings: Settings) -> list[bytes]:
    async with broker.reader([Topics(settings.federation.name).models], start="earliest") as reader:
        return [version.head.weights_digest async for version in read_versions(reader, settings.wire)]


def _replica(reader: Reader, settings: Settings, offload: Offload) -> Replica:
    return Replica(reader, settings.wire, offload)


async def test_whoever_follows_and_whoever_comes_late_have_the_same_bytes(broker: Broker, federation: str) -> None:
    settings = _settings(federation)
    pointers = await _write(broker, settings, 10)
    digests = await _digests(broker, settings)
    assert [pointer.beginning.version for pointer in pointers] == [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8]
    topic = Topics(federation).models
    async with Offload(2) as offload:
        for walk in (range(11), [7], [10], [1, 2, 7, 10], [3, 4], [2, 9], [9, 2], [5, 5]):
            async with broker.reader([topic], start="latest") as reader:
                replica = _replica(reader, settings, offload)
                for number in walk:
                    version = await replica.move_to(pointers[number], _SECONDS)
                    assert version.head.number == number
                    assert weights_digest(version.weights) == digests[number] == version.head.weights_digest
                    assert version.layout.numel == NUMEL


async def test_every_version_is_decoded_from_the_oldest_full_one_on(broker: Broker, federation: str) -> None:
    settings = _settings(federation)
    pointers = await _write(broker, settings, 6)
    digests = await _digests(broker, settings)
    async with broker.reader([Topics(federation).models], start="earliest") as reader:
        found = [weights_digest(version.weights) async for version in decoded_versions(reader, settings.wire)]
        assert found == digests
        reader.seek(reader.partitions[0], pointers[2].offset)
        kinds = [version.head.kind async for version in decoded_versions(reader, settings.wire)]
    assert kinds == [VersionKind.FULL, VersionKind.DELTA, VersionKind.DELTA]


async def test_a_deleted_beginning_is_said_and_the_next_chain_is_taken(federation: str) -> None:
    broker = MemoryBroker(partition_bytes=1 << 14)
    settings = _settings(federation)
    pointers = await _write(broker, settings, 5)
    topic = Topics(federation).models
    async with Offload(2) as offload, broker.reader([topic], start="latest") as reader:
        replica = _replica(reader, settings, offload)
        at = reader.partitions[0]
        async with broker.producer() as producer:
            while True:
                await producer.send(topic, bytes(512), key=b"x", partition=0)
                await reader.seek_to_beginning()
                if await reader.position(at) > pointers[0].offset:
                    break
        with pytest.raises(OffsetGone):
            await replica.move_to(pointers[3], _SECONDS)
        assert (await replica.move_to(pointers[5], _SECONDS)).head.number == 5


async def test_what_does_not_come_is_waited_for_no_longer_than_asked(broker: Broker, federation: str) -> None:
    settings = _settings(federation)
    pointers = await _write(broker, settings, 2)
    async with Offload(2) as offload, broker.reader([Topics(federation).models], start="latest") as reader:
        replica = _replica(reader, settings, offload)
        with pytest.raises(BrokerUnavailable, match="version 3"):
            await replica.move_to(Pointer(3, 0, pointers[2].offset + 2, pointers[0]), 0.3)
        assert (await replica.move_to(pointers[2], _SECONDS)).head.number == 2  # read on the way there


async def test_a_reader_that_was_interrupted_while_a_thread_decodes_goes_on(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread is not cancelled: what it makes of the weights must not be taken for what the reader holds."""
    settings = _settings(federation)
    pointers = await _write(broker, settings, 7)
    digests = await _digests(broker, settings)
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()
    take = Follower.take

    def slow(follower: Follower, head: VersionHead, parts: Iterable[Part], digest: bytes) -> Version | None:
        inside.set()
        assert go_on.wait(_SECONDS)
        try:
            return take(follower, head, parts, digest)
        finally:
            done.set()

    async with Offload(1) as offload, broker.reader([Topics(federation).models], start="latest") as reader:
        replica = _replica(reader, settings, offload)
        await replica.move_to(pointers[1], _SECONDS)
        with monkeypatch.context() as patched:
            patched.setattr(Follower, "take", slow)
            moving = asyncio.ensure_future(replica.move_to(pointers[3], _SECONDS))
            assert await asyncio.to_thread(inside.wait, _SECONDS)
            moving.cancel()
            await asyncio.wait([moving])
            assert moving.cancelled()
            go_on.set()
            assert await asyncio.to_thread(done.wait, _SECONDS)
        for number in (2, 3, 7):
            version = await replica.move_to(pointers[number], _SECONDS)
            assert weights_digest(version.weights) == digests[number]


@pytest.mark.parametrize("what", ["weights", "payload", "parent", "layout"])
async def test_a_delta_that_is_not_what_it_says_is_refused_and_the_next_full_version_taken(
    federation: str, what: str
) -> None:
    broker, settings = MemoryBroker(), _settings(federation)
    pointers = await _write(broker, settings, 5)
    topic = Topics(federation).models
    async with broker.reader([topic], start="earliest") as reader:
        logged = [version async for version in read_versions(reader, settings.wire)]
    changes: dict[str, object] = {
        "weights": {"weights_digest": bytes(32)},
        "payload": {"payload_digest": bytes(32)},
        "parent": {"number": 3, "parent": 1},
        "layout": {"layout_digest": bytes(32)},
    }
    head: VersionHead = replace(logged[2].head, **changes[what])  # type: ignore[arg-type]
    copies = [logged[0], logged[1], replace(logged[2], head=head), *logged[3:]]
    other = f"{federation}-other"
    places = []
    async with broker.producer() as producer:
        await broker.create_topics(Topics(other).specs(settings.topics))
        for copy in copies:
            prelude, identity = pack_prelude(copy.head), message_id("x", copy.offset)
            records = split(prelude, copy.parts, copy.head.payload_size, identity, chunk_bytes=1024)
            key = str(copy.head.number).encode()
            places.append((await producer.send_all(Topics(other).models, records, key=key, partition=0)).offset)
    async with Offload(1) as offload, broker.reader([Topics(other).models], start="latest") as reader:
        replica = Replica(reader, settings.wire, offload)
        full = Pointer(0, 0, places[0])
        assert (await replica.move_to(Pointer(1, 0, places[1], full), _SECONDS)).head.number == 1
        with pytest.raises(Rejected) as refused:
            await replica.move_to(Pointer(head.number, 0, places[2], full), _SECONDS)
        assert refused.value.reason in (Reason.WRONG_DIGEST, Reason.MALFORMED, Reason.WRONG_LAYOUT)
        version = await replica.move_to(Pointer(5, 0, places[5], Pointer(4, 0, places[4])), _SECONDS)
    assert weights_digest(version.weights) == logged[5].head.weights_digest
    assert pointers[5].beginning.version == 4


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("end", ["commit", "abort"])
async def test_a_version_behind_an_open_transaction_is_waited_for(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch, late: bool, end: str
) -> None:
    """Its pointer is seen long before: that does not make it one that is not there."""
    monkeypatch.setattr(visibility, "PROMPT_SECONDS", 0.0)
    monkeypatch.setattr(replica_module, "PROMPT_SECONDS", 0.05)
    settings, asked = _settings(federation), asyncio.Event()

    async def note(call: Call) -> Any:
        if call.operation == "end_offsets" and call.arguments["undecided"]:
            asked.set()
        return await call.proceed()

    watched, topics = FaultyBroker(broker, note), Topics(federation)
    async with (
        aggregator(broker, settings) as running,
        Offload(1) as offload,
        watched.reader([topics.models], start="latest") as models,
        watched.reader([topics.control], start="earliest") as reader,
        broker.producer(f"{federation}-other") as other,
    ):
        control, replica = ControlView(reader), _replica(models, settings, offload)
        await running.version(0)
        await control.catch_up()
        if not late:
            assert (await newest_version(control, replica, _SECONDS)) is not None
        with contextlib.suppress(ZeroDivisionError):
            async with other.transaction() as transaction:
                await transaction.send(topics.models, b"rubbish", partition=0)
                await running.send(update(torch.ones(NUMEL)))
                while control.latest is None or control.latest.version < 1:
                    await control.poll(0.1)
                moving = asyncio.create_task(newest_version(control, replica, _SECONDS))
                asked.clear()
                await asyncio.wait_for(asked.wait(), _SECONDS)
                await asyncio.wait([moving], timeout=0.5)
                assert not moving.done()
                if end == "abort":
                    raise ZeroDivisionError
        version = await moving
        assert version is not None
        assert version.head.number == 1


async def test_a_pointer_beyond_all_that_was_written_is_disowned_by_whoever_follows(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(visibility, "PROMPT_SECONDS", 0.0)
    monkeypatch.setattr(replica_module, "PROMPT_SECONDS", 0.05)
    settings, topics = _settings(federation), Topics(federation)
    pointers = await _write(broker, settings, 2)
    async with (
        Offload(1) as offload,
        broker.reader([topics.models], start="latest") as models,
        broker.reader([topics.control], start="earliest") as reader,
        broker.producer() as producer,
    ):
        control, replica = ControlView(reader), _replica(models, settings, offload)
        await control.catch_up()
        for offset in (pointers[2].offset + 1000, 2**62):
            assert (await newest_version(control, replica, _SECONDS)) is not None
            forged = Pointer(3, 0, offset, pointers[0])
            await producer.send(topics.control, dump_setting(forged), key=LATEST)
            while control.latest != forged:
                await control.poll(0.1)
            version = await newest_version(control, replica, _SECONDS)
            assert version is not None
            assert version.head.number == 2


async def test_one_that_shares_takes_what_this_process_has_made_and_writes_over_nothing_of_it(federation: str) -> None:
    settings, broker = _settings(federation), MemoryBroker()
    pointers = await _write(broker, settings, 6)
    digests = await _digests(broker, settings)
    topic = Topics(federation).models
    made: dict[int, Tensor] = {}
    async with Offload(1) as offload:
        async with broker.reader([topic], start="latest") as reader:
            replica = _replica(reader, settings, offload)
            for number in (0, 1, 4):
                version = await replica.move_to(pointers[number], _SECONDS)
                made[number] = version.weights.clone()
                remember(version.digest, made[number])
        async with broker.reader([topic], start="latest") as reader:
            sharing = Replica(reader, settings.wire, offload, shares=True)
            for number in range(7):  # 2 and 5 are deltas on what is shared, 4 is full
                version = await sharing.move_to(pointers[number], _SECONDS)
                assert weights_digest(version.weights) == digests[number]
                assert (version.weights is made.get(number)) == (number in made)
                if number in made:  # an aggregator that starts again here has them a second time
                    twin = version.weights.clone()
                    remember(version.digest, twin)
    assert all(weights_digest(weights) == digests[number] for number, weights in made.items())

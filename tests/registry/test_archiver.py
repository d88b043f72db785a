"""The archiver beside a real aggregator: what it keeps, and that it keeps its place through all trouble."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, NotFound
from llmos_stream.registry import StoreUnavailable, VersionStore, promote, roll_back, run_archiver
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.runtime import Offload, retry
from llmos_stream.testing import FaultyBroker, RunningFederation, running_role, until
from llmos_stream.training import load_task
from tests.federation import decoded_versions
from tests.losing import LosesVersions
from tests.registry.aids import AT, Folder, registry_settings, store_of, version_of
from tests.replay.aids import running_from
from tests.roles.aids import LAYOUT, aggregator, publish_random, settings_for

_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)


def _settings(federation: str, folder: Folder, last: int | None = None, **registry: Any) -> Settings:
    found = registry_settings(folder.url, federation, **registry)
    return settings_for(
        federation,
        versions={"full_every": 4},
        stop={"max_versions": last} if last else {},
        registry=found.registry.model_dump(),
    )


async def _until(store: VersionStore, numbers: list[int]) -> None:
    async with asyncio.timeout(_SECONDS):
        while await asyncio.to_thread(store.numbers) != numbers:
            pass


@contextlib.asynccontextmanager
async def _archiver(broker: Broker, settings: Settings, stop: bool = False) -> AsyncIterator["asyncio.Task[list[int]]"]:
    """Run an archiver; at the end of the block wait for it, or stop it."""
    store = store_of(settings)
    async with running_role(lambda *given: run_archiver(broker, settings, store, *given)) as role:
        yield role.task
        if not stop:
            async with asyncio.timeout(_SECONDS):
                await asyncio.shield(role.task)


async def _check_weights(running: RunningFederation, store: VersionStore) -> None:
    """What is archived is what the log holds, with the manifest."""
    numbers = store.numbers()
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        async for version in decoded_versions(reader, running.settings.wire):
            if version.head.number in numbers:
                entry, weights = store.load(version.head.number)
                assert torch.equal(weights, version.weights)
                assert [item["sequence"] for item in entry.head["manifest"]] == [
                    item.sequence for item in version.head.manifest
                ]
                numbers.remove(version.head.number)
    assert numbers == []


async def _promote(broker: Broker, settings: Settings, number: int) -> None:
    async with Offload(1) as offload:
        await promote(broker, Topics(settings.federation.name), settings.registry, number, offload)


@pytest.mark.parametrize("last", [8, 9], ids=["a full version", "a delta"])
async def test_every_third_version_and_the_last(broker: Broker, federation: str, folder: Folder, last: int) -> None:
    settings = _settings(federation, folder, last, every=3)
    async with aggregator(broker, settings) as running:
        async with _archiver(broker, settings) as archiving:
            await publish_random(running, range(1, last + 1))
        assert archiving.result() == sorted({0, 3, 6, last})
        await _check_weights(running, store_of(settings))
        assert store_of(settings).numbers() == archiving.result()


@pytest.mark.parametrize(("keep", "kept"), [("last", [6]), ("promoted", [])])
async def test_less_than_every(federation: str, folder: Folder, keep: str, kept: list[int]) -> None:
    settings, broker = _settings(federation, folder, 6, keep=keep, every=2), MemoryBroker()
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 7))
        async with _archiver(broker, settings) as archiving:
            pass
        assert archiving.result() == kept


async def test_one_that_is_started_again_archives_nothing_twice(
    broker: Broker, federation: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = _settings(federation, folder, 9, every=2)
    store, read = store_of(settings), []
    entry = VersionStore.entry

    def noted(self: VersionStore, number: int) -> Any:
        read.append(number)
        return entry(self, number)

    async with aggregator(broker, settings) as running:
        async with _archiver(broker, settings, stop=True):
            await publish_random(running, range(1, 6))
            await _until(store, [0, 2, 4])
        await publish_random(running, range(6, 10))
        monkeypatch.setattr(VersionStore, "entry", noted)
        async with _archiver(broker, settings) as again:
            pass
        assert again.result() == [6, 8, 9]
        assert set(read) == {4}  # it went on where it was, not from the beginning
        async with _archiver(broker, settings) as finished:
            pass
        assert finished.result() == []
        monkeypatch.undo()
        await _check_weights(running, store)


async def test_a_promoted_version_is_archived_wherever_it_is(broker: Broker, federation: str, folder: Folder) -> None:
    settings = _settings(federation, folder, 9, keep="promoted")
    store = store_of(settings)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 4))
        await _promote(broker, settings, 2)  # before there is an archiver
        async with _archiver(broker, settings):
            await _until(store, [2])
            await publish_random(running, range(4, 8))
            await _promote(broker, settings, 5)  # while there is one
            await _until(store, [2, 5])
            await publish_random(running, range(8, 10))
        await _check_weights(running, store)


async def test_the_oldest_go_but_for_what_is_promoted_and_what_a_rollback_goes_to(
    federation: str, folder: Folder
) -> None:
    settings, broker = _settings(federation, folder, 8, every=1, most=2), MemoryBroker()
    store = store_of(settings)
    async with aggregator(broker, settings) as running:
        for number in (1, 2, 3):
            await publish_random(running, [number])
            await _promote(broker, settings, number)
        async with _archiver(broker, settings, stop=True):
            await _until(store, [0, 1, 2, 3])
            await publish_random(running, range(4, 7))
            await _until(store, [2, 3, 5, 6])
        async with _archiver(broker, settings):
            await publish_random(running, range(7, 9))
        assert store.numbers() == [2, 3, 7, 8]
        async with Offload(1) as offload:
            assert (await roll_back(broker, Topics(settings.federation.name), settings.registry, offload)).version == 2
        await _check_weights(running, store)


async def test_a_store_that_fails_is_tried_again_and_no_place_is_lost(
    federation: str, folder: Folder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    settings, broker = _settings(federation, folder, 6, every=2, most=2), MemoryBroker()
    failures = dict.fromkeys(("numbers", "entry", "save", "delete"), 2)

    def unsteady(name: str) -> Any:
        work = getattr(VersionStore, name)

        def wrapped(*arguments: Any) -> Any:
            if failures[name]:
                failures[name] -= 1
                raise StoreUnavailable(f"no {name} today")
            return work(*arguments)

        return wrapped

    store_of(settings).save(version_of(LAYOUT, 90), AT)
    store_of(settings).delete(90)
    for name in failures:
        monkeypatch.setattr(VersionStore, name, unsteady(name))
    failures["entry"] = 0
    async with aggregator(broker, settings) as running:
        async with _archiver(broker, settings, stop=True):
            await publish_random(running, range(1, 5))
            await _until(store_of(settings), [2, 4])
        failures["entry"] = 2
        async with _archiver(broker, settings) as again:
            await publish_random(running, range(5, 7))
        assert again.result() == [6]
        assert store_of(settings).numbers() == [4, 6]
        await _check_weights(running, store_of(settings))
    assert set(failures.values()) == {0}
    for name in failures:
        assert f"no {name} today; trying again in" in caplog.text


async def test_a_store_that_stays_away_does_not_hold_up_a_stop(
    federation: str, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, broker = _settings(federation, folder), MemoryBroker()
    tried = asyncio.Event()
    loop = asyncio.get_running_loop()

    def away(*_: object) -> None:
        loop.call_soon_threadsafe(tried.set)
        raise StoreUnavailable("away")

    monkeypatch.setattr(VersionStore, "save", away)
    async with aggregator(broker, settings), _archiver(broker, settings, stop=True) as archiving:
        async with asyncio.timeout(_SECONDS):
            await tried.wait()
    assert archiving.result() == []
    assert store_of(settings).numbers() == []


@pytest.mark.parametrize("lost_at", [{1}, {2}, {3, 4}, {6, 8}])
async def test_a_broker_that_is_lost_costs_no_place(federation: str, folder: Folder, lost_at: set[int]) -> None:
    settings, broker = _settings(federation, folder, 9, every=2), MemoryBroker()
    losing = LosesVersions(lost_at, records_at_once=2)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 7))
        async with _archiver(FaultyBroker(broker, losing), settings) as archiving:
            await publish_random(running, range(7, 10))
        assert archiving.result() == [0, 2, 4, 6, 8, 9]
        await _check_weights(running, store_of(settings))
    assert losing.found > max(lost_at)


async def test_another_run_of_the_same_name_is_refused(federation: str, folder: Folder) -> None:
    settings = _settings(federation, folder, 4, every=2)
    for first in (True, False):
        broker = MemoryBroker()
        async with aggregator(broker, settings) as running:
            await publish_random(running, range(1, 5))
            if first:
                async with _archiver(broker, settings):
                    pass
                continue
            with pytest.raises(ConfigError, match="of another run of federation"):
                async with _archiver(broker, settings):
                    pass


async def test_a_damaged_description_is_told_and_holds_nothing_up(
    federation: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    settings, broker = _settings(federation, folder, 6, every=2), MemoryBroker()
    store = store_of(settings)
    async with aggregator(broker, settings) as running:
        async with _archiver(broker, settings, stop=True):
            await publish_random(running, range(1, 3))
            await _until(store, [0, 2])
        folder.write(f"{federation}/00000002/version.json", b"rubbish")
        async with _archiver(broker, settings) as again:
            await publish_random(running, range(3, 7))
        assert again.result() == [4, 6]
    assert "version 2 in the registry: version.json cannot be read" in caplog.text


async def test_one_that_retention_overtook_goes_on_with_the_oldest_that_is_left(
    federation: str, folder: Folder, caplog: pytest.LogCaptureFixture
) -> None:
    given = _settings(federation, folder, 42, every=10)
    settings = given.model_copy(
        update={
            "task": given.task.model_copy(update={"entry": "blobs"}),
            "topics": given.topics.model_copy(update={"models_retention_gib": 4e-5}),
        }
    )
    initial = initial_of(load_task(settings.task, settings.client), settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running:
        async with _archiver(broker, settings, stop=True):
            await _until(store_of(settings), [0])
        for number in range(1, 43):
            delta = torch.randn(initial.layout.numel, generator=torch.Generator().manual_seed(number))
            await running.publish(delta, sequence=number, base_version=number - 1)
            await running.events("version_published", number + 1)
        async with _archiver(broker, settings) as archiving:
            pass
        assert archiving.result() == [20, 30, 40, 42]
        await _promoted_and_gone(broker, settings, caplog)
    assert "retention deleted versions before they were seen" in caplog.text


async def _promoted_and_gone(broker: Broker, settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NotFound, match="version 1 is neither in the log nor in the registry"):
        await _promote(broker, settings, 1)
    async with broker.producer() as producer:
        value = orjson.dumps({"version": 1, "history": [], "time_ms": 0})
        await producer.send(f"{settings.federation.name}.control", value, key=b"promoted")
    async with _archiver(broker, settings) as archiving:
        pass
    assert archiving.result() == []
    assert "version 1 is promoted and cannot be archived" in caplog.text


async def test_an_aggregator_is_not_disturbed_by_a_promotion(broker: Broker, federation: str, folder: Folder) -> None:
    settings = _settings(federation, folder)
    async with aggregator(broker, settings) as running:
        await publish_random(running, range(1, 3))
        await _promote(broker, settings, 1)
        await publish_random(running, range(3, 4))
    async with aggregator(broker, settings) as running:  # one that finds it there
        await publish_random(running, range(4, 6))
        assert await running.events("version_published", 6)
        async with running.broker.reader([running.topics.quarantine], start="earliest") as reader:
            assert await reader.lag() == 0


async def test_it_waits_for_its_federation(federation: str, folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    settings, broker = _settings(federation, folder, 1), MemoryBroker()
    async with _archiver(broker, settings) as archiving, aggregator(broker, settings) as running:
        await publish_random(running, [1])
    assert archiving.result() == [0, 1]
    assert "version 1 is archived (" in caplog.text


async def test_a_store_that_cannot_be_written_is_told_before_there_is_a_version(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker, folder = MemoryBroker(), Folder("file", tmp_path / "store")
    (tmp_path / "store").write_text("no folder")
    settings = _settings(federation, folder)
    await broker.create_topics(Topics(federation).specs(settings.topics))
    async with _archiver(broker, settings, stop=True):
        await until(lambda: "the registry at " in caplog.text)
    assert "trying again" in caplog.text

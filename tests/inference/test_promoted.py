"""A promoted version that the log does not hold any more: it comes from the registry, as soon as that answers."""

import asyncio
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from torch import nn

from llmos_stream.broker import Broker, MemoryBroker, Topics, connect
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.inference import follow, run_inference
from llmos_stream.inference import promoted as module
from llmos_stream.inference.model_pool import LoadedModel, load_archived, load_model, making
from llmos_stream.inference.promoted import Promoted
from llmos_stream.log.index import version_index
from llmos_stream.registry import StoreUnavailable, VersionStore, promote
from llmos_stream.roles.aggregator import Initial
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.testing import ManualClock, until
from llmos_stream.training import shared_tensors
from tests.conftest import KafkaNode
from tests.federation import decoded_versions, federation_of
from tests.inference.aids import SECONDS
from tests.inference.following import promote_in_log, serving_of, settings_of, task_of
from tests.registry.aids import AT, store_of, version_of
from tests.replay.aids import running_from
from tests.roles.aids import publish_random

_OLD = 70
_QUESTION = {"inputs": [[0.5] * 16]}


def _with_registry(federation: str, folder: Path, **sections: Any) -> Settings:
    return settings_of(federation, registry={"url": f"file://{folder}"}, **sections)


def _archive(settings: Settings, initial: Initial, number: int = _OLD) -> None:
    store_of(settings).save(version_of(initial.layout, number), AT)


class _Away:
    """A store that does not answer for as long as it is `away`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = True
        self.asked = 0
        real = VersionStore.load

        def load(store: VersionStore, number: int) -> Any:
            self.asked += 1
            if self.away:
                raise StoreUnavailable("nobody answers")
            return real(store, number)

        monkeypatch.setattr(VersionStore, "load", load)


class _Stuck:
    """A store that neither answers nor fails until `let_go`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self._gone_on = threading.Event()
        real = VersionStore.load

        def load(store: VersionStore, number: int) -> Any:
            self.asked += 1
            self._gone_on.wait(60)
            return real(store, number)

        monkeypatch.setattr(VersionStore, "load", load)

    def let_go(self) -> None:
        self._gone_on.set()

    def hold(self) -> None:
        self._gone_on.clear()


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Stuck]:
    store = _Stuck(monkeypatch)
    yield store
    store.let_go()


async def test_it_is_loaded_from_the_registry_and_answers(broker: Broker, federation: str, tmp_path: Path) -> None:
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    _archive(settings, initial)
    with torch.no_grad():
        expected = load_model(making(task, settings.task.share), version_of(initial.layout, _OLD)).model(
            torch.tensor(_QUESTION["inputs"])
        )
    async with running_from(broker, settings, initial) as running:
        for _ in ("at first", "and after a restart"):
            async with serving_of(broker, settings, task) as serving:
                await until(lambda serving=serving: serving.pool.newest is not None)  # type: ignore[misc]
                await promote_in_log(running, _OLD)
                await until(lambda serving=serving: serving.pool.promoted == _OLD)  # type: ignore[misc]
                said = (await serving.http.post("/v1/predict", json=_QUESTION)).json()
                assert (said["version"], said["why"]) == (_OLD, "promoted")
                torch.testing.assert_close(torch.tensor(said["outputs"]), expected, rtol=1e-5, atol=1e-5)
                models = (await serving.http.get("/v1/models")).json()["models"]
                archived = version_of(initial.layout, _OLD).head
                assert [one["weights_digest"] for one in models][-1] == archived.weights_digest.hex()
                assert [one["time_ms"] for one in models][-1] == archived.time_ms


@pytest.mark.kafka
async def test_one_that_retention_has_deleted_is_promoted_and_serves(
    kafka: KafkaNode, federation: str, tmp_path: Path
) -> None:
    settings = _with_registry(federation, tmp_path)  # a full version every 4
    task, initial = task_of(settings)
    async with (
        connect(kafka.settings()) as broker,
        running_from(broker, settings, initial) as running,
        Offload(1) as offload,
    ):
        await publish_random(running, range(1, 5))
        async with running.broker.reader([running.topics.models], start="earliest") as reader:
            async for version in decoded_versions(reader, settings.wire):
                if version.head.number == 2:
                    store_of(settings).save(version, AT)
        async with version_index(broker, Topics(federation).models) as index:
            kept = await index.pointer(4)
        assert kept is not None
        await _delete(kafka, running.topics.models, kept.beginning.offset)
        assert (await promote(broker, Topics(settings.federation.name), settings.registry, 2, offload)).version == 2
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: serving.pool.promoted == 2)
            assert (await serving.http.post("/v1/predict", json=_QUESTION)).json()["version"] == 2


async def _delete(kafka: KafkaNode, topic: str, before: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TheirPartition(topic, 0): RecordsToDelete(before)})
    await admin.close()


async def test_narrow_tensors_are_what_the_model_would_have_made_of_them(federation: str, tmp_path: Path) -> None:
    settings = _with_registry(federation, tmp_path)

    class Narrow:
        def model(self) -> nn.Module:
            return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2).to(torch.bfloat16), nn.Linear(2, 2).half())

    narrow: Any = Narrow()
    version = version_of(Layout.of(shared_tensors(narrow.model(), settings.task.share)), _OLD)
    store_of(settings).save(version, AT)
    logged = load_model(making(narrow, settings.task.share), version).model.state_dict()
    archived = load_archived(making(narrow, settings.task.share), *store_of(settings).load(_OLD)).model.state_dict()
    assert {tensor.dtype for tensor in archived.values()} == {torch.float32, torch.bfloat16, torch.float16}
    assert all(torch.equal(archived[name], tensor) for name, tensor in logged.items())


async def test_versions_of_a_later_run_with_smaller_numbers_go_on_coming(federation: str, tmp_path: Path) -> None:
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    _archive(settings, initial)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await promote_in_log(running, _OLD)
        await until(lambda: serving.pool.promoted == _OLD)
        for number in (1, 2):
            await publish_random(running, [number])
        await promote_in_log(running, 2)
        await until(lambda: serving.pool.promoted == 2)


async def test_while_the_store_is_away_what_is_held_serves_and_new_versions_come(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(module, "_LAST_PAUSE_SECONDS", 0.002)
    store = _Away(monkeypatch)
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    _archive(settings, initial)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running:
        await promote_in_log(running, _OLD)
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: store.asked >= 2)
            await publish_random(running, [1])
            await until(lambda: serving.pool.newest == 1)
            said = (await serving.http.post("/v1/predict", json=_QUESTION)).json()
            assert (said["version"], said["why"]) == (1, "newest")
            assert caplog.text.count("cannot be had yet (nobody answers)") == 1
            store.away = False
            await until(lambda: serving.pool.promoted == _OLD)


async def test_another_promotion_does_not_wait_for_one_that_cannot_be_had(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = _Away(monkeypatch)
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await promote_in_log(running, _OLD)
        await until(lambda: store.asked == 1)
        await promote_in_log(running, 0)
        await until(lambda: serving.pool.promoted == 0)


async def test_a_store_that_is_stuck_holds_nothing_up(federation: str, tmp_path: Path, stuck: _Stuck) -> None:
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    _archive(settings, initial)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await until(lambda: serving.pool.newest == 0)
        await promote_in_log(running, _OLD)
        await until(lambda: stuck.asked == 1)
        await publish_random(running, [1])
        await until(lambda: serving.pool.newest == 1)
        await promote_in_log(running, 0)
        await until(lambda: serving.pool.promoted == 0)
        stuck.let_go()
        await promote_in_log(running, _OLD)
        await until(lambda: serving.pool.promoted == _OLD)


async def test_after_a_start_it_serves_first_unless_the_store_is_stuck(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stuck: _Stuck
) -> None:
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    _archive(settings, initial)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running:
        await promote_in_log(running, _OLD)
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: stuck.asked == 1)
            for _ in range(100):
                await asyncio.sleep(0)
            assert not serving.pool.models  # it waits for the one promoted
            publish, came = serving.pool.publish, list[int]()

            def noting(model: LoadedModel, *, promoted: bool = False) -> None:
                came.append(model.version)
                publish(model, promoted=promoted)

            monkeypatch.setattr(serving.pool, "publish", noting)
            stuck.let_go()
            await until(lambda: 0 in serving.pool.models)
            assert came == [_OLD, 0]
        monkeypatch.setattr(follow, "_PROMOTED_SECONDS", 0.01)
        stuck.hold()
        async with serving_of(broker, settings, task) as serving:
            await until(lambda: 0 in serving.pool.models)
            assert (await serving.http.post("/v1/predict", json=_QUESTION)).json()["version"] == 0
            stuck.let_go()
            await until(lambda: serving.pool.promoted == _OLD)


async def test_one_that_was_nowhere_is_looked_for_anew_when_it_is_promoted_again(
    federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await promote_in_log(running, 0)
        await until(lambda: serving.pool.promoted == 0)
        await promote_in_log(running, _OLD)
        await until(lambda: "cannot be had" in caplog.text)
        _archive(settings, initial)
        await promote_in_log(running, 0)
        await publish_random(running, [1])  # read after it: what is promoted has been seen by then
        await until(lambda: serving.pool.newest == 1)
        await promote_in_log(running, _OLD)
        await until(lambda: serving.pool.promoted == _OLD)


async def test_pauses_grow_to_half_a_minute_and_begin_anew_with_another_version(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, clock = _Away(monkeypatch), ManualClock()
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    broker = MemoryBroker()
    async with running_from(broker, settings, initial), Offload(1) as offload:
        here = replace(federation_of(broker, settings, offload), clock=clock)
        promoted = Promoted(here, settings.registry, making(task, settings.task.share), offload)
        asked = []

        async def every_second() -> None:
            for second in range(100):
                before = store.asked
                assert await promoted.find(_OLD, SECONDS) is None
                if store.asked > before:
                    asked.append(second)
                clock.advance(1.0)
            assert asked == [0, 1, 3, 7, 15, 31, 61, 91]
            assert await promoted.find(_OLD + 1, SECONDS) is None
            assert store.asked == len(asked) + 1

        await run_while(every_second(), promoted.run())


@pytest.mark.parametrize(
    ("harm", "why"),
    [
        ("nothing there", "is not in the registry"),
        ("cut short", "is not the file that was archived"),
        ("another model", "the task's shared tensors are not the federation's"),
        ("no time", "version.json cannot be read"),
    ],
)
async def test_what_cannot_be_had_is_said_once_and_not_asked_for_again(
    harm: str, why: str, federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    store = _Away(monkeypatch)
    store.away = False
    settings = _with_registry(federation, tmp_path)
    task, initial = task_of(settings)
    place = tmp_path / federation / f"{_OLD:08d}"
    if harm == "another model":
        store_of(settings).save(version_of(Layout.of({"w": torch.zeros(3)}), _OLD), AT)
    elif harm != "nothing there":
        _archive(settings, initial)
        name, cut = ("model.safetensors", 1) if harm == "cut short" else ("version.json", 0)
        data = (place / name).read_bytes()
        (place / name).write_bytes(data[: len(data) - cut].replace(b'"time"', b'"when"'))
    broker = MemoryBroker()
    async with running_from(broker, settings, initial) as running, serving_of(broker, settings, task) as serving:
        await promote_in_log(running, _OLD)
        await until(lambda: "cannot be had" in caplog.text)
        assert why in caplog.text
        await publish_random(running, [1])
        await until(lambda: serving.pool.newest == 1)
        assert store.asked == caplog.text.count("cannot be had") == 1
        assert serving.pool.promoted is None


async def test_a_registry_that_makes_no_sense_is_told_at_the_start(
    federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_of(federation, registry={"url": "nonsense://x"}, inference={"port": 0})
    task, _ = task_of(settings)
    async with asyncio.timeout(30), Offload(1) as offload:
        with pytest.raises(ConfigError, match=r"registry\.url"):
            await run_inference(MemoryBroker(), settings, task, offload, Shutdown())
    assert "predicting on" not in caplog.text

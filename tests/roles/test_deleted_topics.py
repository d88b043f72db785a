"""A topic that is deleted while roles run: each ends with one line that says what is missing, none waits for ever."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics, TopicSpec
from llmos_stream.config import Settings
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.dashboard.follow import follow
from llmos_stream.errors import ConfigError, TopicMissing
from llmos_stream.log import topics as looking
from llmos_stream.log.events import follow_events
from llmos_stream.registry import run_archiver
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import Call, FaultyBroker, running_federation, running_role
from llmos_stream.training import load_task
from tests.registry.aids import store_of
from tests.roles.aids import NUMEL, delta_of, initial, publish_random, settings_for

_SECONDS = 60.0
Role = Callable[[Broker, Settings, Offload, Shutdown], Coroutine[Any, Any, Any]]


@pytest.fixture(autouse=True)
def _looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(looking, "_WATCH_SECONDS", 0.05)
    monkeypatch.setattr(looking, "_DOUBT_SECONDS", 0.05)


async def _aggregator(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> object:
    task = load_task(settings.task, settings.client)
    return await run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown)


async def _client(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> object:
    task = load_task(settings.task, settings.client)
    with ClientState("c", None) as state:
        return await run_client(broker, settings, task, state, offload, shutdown)


async def _evaluator(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> object:
    return await run_evaluator(broker, settings, load_task(settings.task, settings.client), offload, shutdown)


async def _archiver(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> object:
    own = settings.changed(registry={"url": f"memory://{settings.federation.name}"})
    return await run_archiver(broker, own, store_of(own), offload, shutdown)


async def _monitor(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> None:
    await follow_events(broker, Topics(settings.federation.name), lambda _: None, shutdown)


async def _page(broker: Broker, settings: Settings, offload: Offload, shutdown: Shutdown) -> None:
    view = FederationView(settings.federation.name)
    await follow(broker, Topics(settings.federation.name), view, shutdown)


def _settings(federation: str, **sections: Any) -> Settings:
    client = {"id": "c", "wait_seconds": 0.2}
    return settings_for(federation, task={"entry": "blobs"}, **{"client": client, **sections})


@contextlib.asynccontextmanager
async def _going(broker: Broker, settings: Settings, *roles: Role) -> AsyncIterator[list["asyncio.Task[Any]"]]:
    """Run roles whose end, and errors, are the test's to look at."""
    async with contextlib.AsyncExitStack() as stack:
        tasks = []
        for role in roles:
            running = running_role(lambda *given, role=role: _told(role(broker, settings, *given)))
            tasks.append((await stack.enter_async_context(running)).task)
        yield tasks


async def _told(work: Coroutine[Any, Any, Any]) -> object:
    """What came of it, an error too."""
    try:
        return await work
    except TopicMissing as error:
        return error


async def _first_version(broker: Broker, topics: Topics) -> None:
    async with asyncio.timeout(_SECONDS):
        await looking.wait_for_topics(broker, topics.names, Shutdown())
        async with broker.reader([topics.models], start="earliest") as reader:
            assert await reader.poll(_SECONDS)


@pytest.mark.parametrize(
    ("role", "kind"),
    [
        *((_aggregator, kind) for kind in ("updates", "models", "events", "control", "snapshots", "evaluations")),
        *((_client, kind) for kind in ("updates", "control")),
        *((_evaluator, kind) for kind in ("models", "control")),
        *((_archiver, kind) for kind in ("models", "control")),
        *((_monitor, kind) for kind in ("events", "control")),
        *((_page, kind) for kind in ("models", "control")),
    ],
)
async def test_a_role_says_which_of_its_topics_was_deleted(role: Role, kind: str, federation: str) -> None:
    broker, settings, topics = MemoryBroker(), _settings(federation), Topics(federation)
    opened = asyncio.Event()

    async def note(call: Call) -> Any:
        result = await call.proceed()
        if call.operation == "open" and f"{federation}.{kind}" in call.topics:
            opened.set()
        return result

    async def watched(_: Broker, *given: Any) -> object:
        return await role(FaultyBroker(broker, note), *given)

    roles = (_aggregator,) if role is _aggregator else (_aggregator, watched)
    async with _going(broker, settings, *roles) as tasks:
        await _first_version(broker, topics)
        if role is _client:
            async with broker.reader([topics.updates], start="earliest") as reader:
                assert await reader.poll(_SECONDS)
        elif role is not _aggregator:
            async with asyncio.timeout(_SECONDS):
                await opened.wait()
        await broker.delete_topics([f"{federation}.{kind}"])
        await asyncio.wait([tasks[-1]], timeout=_SECONDS)
        assert tasks[-1].done()
        ended = tasks[-1].result()
    assert isinstance(ended, TopicMissing)
    assert f"there is no topic {federation}.{kind}: " in str(ended)
    assert "topics create" in str(ended)


async def test_an_aggregator_that_is_started_again_makes_what_was_deleted_and_says_so(
    federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    broker, settings, topics = MemoryBroker(), _settings(federation), Topics(federation)
    async with _going(broker, settings, _aggregator) as (first,):
        await _first_version(broker, topics)
        await broker.delete_topics([topics.updates])
        await asyncio.wait([first], timeout=_SECONDS)
    async with (
        _going(broker, settings, _aggregator, _client),
        asyncio.timeout(_SECONDS),
        broker.reader([topics.models], start="latest") as reader,
    ):
        assert await reader.poll(_SECONDS)
    assert f"made the topics that were missing, empty: {topics.updates}" in caplog.text


async def test_updates_that_were_made_anew_are_not_read_on_as_if_nothing_were(federation: str) -> None:
    broker, settings, topics = MemoryBroker(), _settings(federation), Topics(federation)
    async with _going(broker, settings, _aggregator) as (aggregator,):
        await _first_version(broker, topics)
        async with broker.producer() as producer:
            await producer.send_all(topics.updates, [b"rubbish"] * 3, key=b"a")
        async with asyncio.timeout(_SECONDS), broker.reader([topics.quarantine], start="earliest") as reader:
            assert await reader.poll(_SECONDS)
        await broker.delete_topics([topics.updates])
        await broker.create_topics([TopicSpec(topics.updates)])
        await asyncio.wait([aggregator], timeout=_SECONDS)
        assert aggregator.done()
        assert f"{topics.updates}[0] was read up to offset 3 and ends at 0" in str(aggregator.result())


async def test_a_chunk_that_a_topic_would_not_take_is_refused_before_any_work(federation: str, tmp_path: Path) -> None:
    broker, settings, topics = MemoryBroker(), _settings(federation), Topics(federation)
    await broker.create_topics(topics.specs(settings.topics))
    for name, role in ((topics.updates, _client), (topics.models, _aggregator), (topics.snapshots, _aggregator)):
        await broker.configure_topic(name, {"max.message.bytes": "20000"})
        async with Offload(1) as offload:
            with pytest.raises(
                ConfigError, match=rf"wire\.chunk_bytes: 983040 does not fit topic {name}.*20000"
            ) as error:
                await role(broker, settings, offload, Shutdown())
        fitting = int(str(error.value).partition("CHUNK_BYTES=")[2].partition(" ")[0])
        smaller = settings.wire.model_copy(update={"chunk_bytes": fitting})
        await looking.check_chunks_fit(broker, smaller, [name])
        await broker.configure_topic(name, {"max.message.bytes": "1048588"})


@pytest.mark.parametrize(("kind", "following"), [("models", 3), ("control", 3)])
async def test_an_aggregator_whose_log_was_deleted_in_part_never_publishes_a_number_again(
    federation: str, kind: str, following: int, caplog: pytest.LogCaptureFixture
) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    async with running_federation(initial(), settings, broker) as running:
        await publish_random(running, [1, 2])
        await running.stop()
    await broker.delete_topics([f"{federation}.{kind}"])
    async with running_federation(initial(), settings, broker) as running:
        # One on a version that is gone counts no more.
        await running.publish(delta_of(1.0), sequence=7, base_version=2)
        if kind == "models":
            assert torch.equal((await running.version(following)).weights, torch.zeros(NUMEL))
            await running.read(running.topics.quarantine)
        else:
            assert (await running.version(following)).head.parent == 2
    said = "beginning again as version 3" if kind == "models" else "going on from the newest in the log"
    assert said in caplog.text


class _Hasty(MemoryBroker):
    async def longest_transaction_seconds(self) -> float | None:
        return 900.0


async def test_a_transaction_time_that_kafka_does_not_allow_is_refused_before_anybody_leads(federation: str) -> None:
    settings = _settings(federation, broker={"transaction_timeout_seconds": 3600.0})
    async with Offload(1) as offload:
        with pytest.raises(ConfigError, match=r"broker\.transaction_timeout_seconds: 3600 is more than the 900 s"):
            await _aggregator(_Hasty(), settings, offload, Shutdown())

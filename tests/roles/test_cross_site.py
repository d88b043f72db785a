"""What sites train alone, measured at each other: who shares, who measures what, and what strangers can do."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.codec import encode
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerError
from llmos_stream.log.admission import head_of
from llmos_stream.log.local_models import admit_local_model, decode_local_model
from llmos_stream.log.stream import MessageStream, value_of
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.storage.spool import spooled
from llmos_stream.telemetry.process_metrics import FOREIGN
from llmos_stream.testing import Call, FaultyBroker, RunningFederation
from llmos_stream.training import LocalTrainer, Task, load_task
from llmos_stream.training.local import evaluate
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import CodecId, CodecSpec, Event, EventKind, LocalModelHead
from llmos_stream.wire import Assembler, MemoryStore, load_event, message_id, pack_prelude, split
from tests.replay.aids import running_from
from tests.roles.aids import settings_for

_SITES = {"a": 0, "b": 1}


def _settings(federation: str, site: str, **client: Any) -> Settings:
    return settings_for(
        federation,
        task={"entry": "blobs"},
        # A version is made of one update of each: so both take part in all.
        aggregation={"buffer_size": 2},
        client={"id": site, "shard": _SITES[site], "share_local": True, "share_local_every": 1} | client,
        stop={"max_versions": 4},
    )


def _task(settings: Settings) -> Task:
    return load_task(settings.task, settings.client)


async def _live(broker: Broker, settings: Settings) -> int:
    client_id = settings.client.id or ""
    async with Offload(2) as offload:
        with ClientState(client_id, None) as state:
            return await run_client(broker, settings, _task(settings), state, offload, Shutdown())


async def _run(running: RunningFederation, sites: Sequence[Settings]) -> None:
    await asyncio.gather(*[_live(running.broker, site) for site in sites], running.task)


async def _told(running: RunningFederation) -> list[Event]:
    """What sites have told of models that were trained alone."""
    async with running.broker.reader([running.topics.evaluations], start="earliest") as reader:
        found = [load_event(value_of(record)) for record in await _all_of(reader)]
    return [event for event in found if event.data.get("trained_by") is not None]


async def _all_of(reader: Any) -> list[Any]:
    found: list[Any] = []
    while await reader.lag() > 0:
        found += await reader.poll(1.0)
    return found


async def _shared(running: RunningFederation) -> dict[tuple[str, int], tuple[LocalModelHead, Tensor]]:
    """What lies in the topic, by site and version."""
    layout = running.initial.layout
    found = {}
    async with running.broker.reader([running.topics.locals], start="earliest") as reader:
        assembler = Assembler(admit_local_model(layout), 1 << 26)
        async for message in MessageStream(reader, assembler).to_end():
            head = head_of(LocalModelHead, message)
            found[head.client_id, head.version] = head, decode_local_model(message, layout)
    return found


def _local(task: Task) -> LocalModel:
    model = task.model()
    return LocalModel(LocalTrainer(model, task.optimizer(model), task.loss), "all")


def _measured(settings: Settings, weights: Tensor) -> dict[str, float]:
    """What these weights reach on the validation data of that site."""
    task = _task(settings)
    local, batches = _local(task), task.validation_batches()
    assert batches is not None
    local.load(weights)
    found = evaluate(local.trainer.model, batches, task.loss)
    del found["num_examples"]
    return found


async def test_each_site_measures_what_the_others_have_trained_alone(broker: Broker, federation: str) -> None:
    sites = {name: _settings(federation, name) for name in _SITES}
    async with running_from(broker, sites["a"], initial_of(_task(sites["a"]), sites["a"])) as running:
        await _run(running, list(sites.values()))
        told, shared = await _told(running), await _shared(running)
    pairs = {(event.data["client_id"], event.data["trained_by"]) for event in told}
    assert pairs == {("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")}
    assert {name for name, _ in shared} == {"a", "b"}
    for event in told:
        site, trainer, version = (event.data[name] for name in ("client_id", "trained_by", "version"))
        assert event.data["since"] == version  # it is what one training has made of that version
        _, weights = shared[str(trainer), version]  # type: ignore[index]
        assert event.data["metrics"] == pytest.approx(_measured(sites[str(site)], weights))
    # The first is what its own training makes of version 0.
    task = _task(sites["b"])
    local = _local(task)
    local.train(running.initial.weights, 0, [task.train_batches(1)])
    torch.testing.assert_close(shared["b", 0][1], local.weights())


async def test_a_site_that_trains_a_model_of_its_own_shares_that(federation: str) -> None:
    sites = [_settings(federation, name, train_alone=True) for name in _SITES]
    async with running_from(MemoryBroker(), sites[0], initial_of(_task(sites[0]), sites[0])) as running:
        await _run(running, sites)
        told, shared = await _told(running), await _shared(running)
    assert {event.data["since"] for event in told} == {0} == {head.since for head, _ in shared.values()}
    pairs = [(event.data["client_id"], event.data["trained_by"], event.data["version"]) for event in told]
    assert {(site, trainer) for site, trainer, _ in pairs} == {("a", "a"), ("a", "b"), ("b", "a"), ("b", "b")}
    assert len(pairs) == len(set(pairs)), "its own is measured where it is trained, and not once more"


async def test_models_are_shared_at_each_nth_version(federation: str) -> None:
    sites = [_settings(federation, name, share_local_every=3) for name in _SITES]
    async with running_from(MemoryBroker(), sites[0], initial_of(_task(sites[0]), sites[0])) as running:
        await _run(running, sites)
        shared = await _shared(running)
    assert set(shared) == {(name, version) for name in "ab" for version in (0, 3)}


async def test_a_site_that_does_not_share_reads_and_writes_nothing_of_it(federation: str) -> None:
    touched = []

    async def watch(call: Call) -> Any:
        if any(topic.endswith(".locals") for topic in call.topics):
            touched.append(call.method)
        return await call.proceed()

    inner = MemoryBroker()
    shares, keeps = _settings(federation, "a"), _settings(federation, "b", share_local=False)
    async with running_from(inner, shares, initial_of(_task(shares), shares)) as running:
        await asyncio.gather(_live(inner, shares), _live(FaultyBroker(inner, watch), keeps), running.task)
        told, shared = await _told(running), await _shared(running)
    assert touched == []
    assert {name for name, _ in shared} == {"a"}
    assert {(event.data["client_id"], event.data["trained_by"]) for event in told} == {("a", "a")}


async def test_a_site_that_measures_nothing_shares_all_the_same(federation: str) -> None:
    sites = [_settings(federation, "a"), _settings(federation, "b", evaluate_every=0)]
    async with running_from(MemoryBroker(), sites[0], initial_of(_task(sites[0]), sites[0])) as running:
        await _run(running, sites)
        told, shared = await _told(running), await _shared(running)
    assert {name for name, _ in shared} == {"a", "b"}
    assert {event.data["client_id"] for event in told} == {"a"}


async def test_a_site_that_may_not_share_goes_on_without(
    federation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def forbidden(*_: object) -> None:
        raise BrokerError("Kafka does not permit this")

    monkeypatch.setattr("llmos_stream.roles.client.cross_site.missing_topics", forbidden)
    sites = [_settings(federation, name) for name in _SITES]
    async with running_from(MemoryBroker(), sites[0], initial_of(_task(sites[0]), sites[0])) as running:
        with caplog.at_level(logging.WARNING, "llmos_stream"):
            await _run(running, sites)
        assert await _shared(running) == {}
    assert "going on without the models of sites: Kafka does not permit this" in caplog.text


@pytest.mark.parametrize("looks", [2, 10**6])
async def test_a_site_waits_a_moment_until_the_topic_is_known(
    federation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, looks: int
) -> None:
    """Kafka may know of the topics that a client needs before it knows of this one; it may not be there at all."""
    asked = {"in all": 0}

    async def late(_: Broker, topics: Sequence[str]) -> list[str]:
        asked["in all"] += 1
        return list(topics) if asked["in all"] <= looks else []

    monkeypatch.setattr("llmos_stream.roles.client.cross_site.missing_topics", late)
    monkeypatch.setattr("llmos_stream.roles.client.cross_site._LOOK_SECONDS", 0.01)
    monkeypatch.setattr("llmos_stream.roles.client.cross_site._TOPIC_SECONDS", 0.1 if looks > 2 else 60.0)
    sites = [_settings(federation, name) for name in _SITES]
    async with running_from(MemoryBroker(), sites[0], initial_of(_task(sites[0]), sites[0])) as running:
        await _run(running, sites)
        shared = {name for name, _ in await _shared(running)}
    assert shared == (set(_SITES) if looks == 2 else set())
    assert ("there is no topic" in caplog.text) == (looks > 2)


def _frames(weights: Tensor) -> list[bytes]:
    return list(encode(weights, CodecSpec(CodecId.FLOAT32)))


async def test_what_strangers_write_is_counted_and_passed_over(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    site = _settings(federation, "a").changed(aggregation={"buffer_size": 1})
    has_written, before = asyncio.Event(), FOREIGN.labels("locals")._value.get()

    async def once_written(call: Call) -> Any:
        """Nothing is trained into a version before the strangers have written."""
        if call.topics == (f"{federation}.updates",):
            await has_written.wait()
        return await call.proceed()

    async with running_from(broker, site, initial_of(_task(site), site)) as running:
        good, numel = _frames(running.initial.weights), running.initial.layout.numel

        async def write(key: str, payload: Sequence[bytes], **claims: Any) -> None:
            """A message from `key`; what its head claims need not be so."""
            kept, layout = spooled(payload, MemoryStore()), running.initial.layout
            head = LocalModelHead(key, 0, 0, layout.digest, CodecSpec(CodecId.FLOAT32), kept.size, kept.digest)
            prelude, identifier = pack_prelude(replace(head, **claims)), message_id(key, len(caplog.records))
            records = split(prelude, payload, kept.size, identifier, 1 << 16)
            async with broker.producer() as producer:
                await producer.send_all(running.topics.locals, records, key=key.encode())

        async def strangers() -> None:
            await running.events(EventKind.CLIENT_JOINED)
            async with broker.producer() as producer:
                await producer.send_all(running.topics.locals, [b"rubbish", b""], key=b"x")
            await write("forger", good, client_id="b")
            await write("other", good, layout_digest=b"\x01" * 32)
            await write("int8", good, codec=CodecSpec(CodecId.INT8))
            await write("liar", good, payload_digest=b"\x01" * 32)
            await write("huge", good, payload_size=1 << 40)
            await write("short", _frames(torch.zeros(3)))
            await write("prophet", good, version=1 << 40)
            await write("diverged", _frames(torch.full((numel,), torch.nan)))
            has_written.set()

        with caplog.at_level(logging.WARNING, "llmos_stream"):
            await asyncio.gather(_live(FaultyBroker(broker, once_written), site), strangers(), running.task)
        told = await _told(running)
    assert FOREIGN.labels("locals")._value.get() - before >= 9  # all of them, and both records of rubbish
    for said in (
        "its key is not the client that it names",
        "it is of another model",
        "no local model is written in int8",
        "what liar has trained: wrong_digest: the payload does not match its digest",
        "payload of 1099511627776 bytes",
        "what short has trained",
        "what prophet has trained: it names a version that there is not",
    ):
        assert said in caplog.text
    assert {event.data["trained_by"] for event in told} == {"a", "diverged"}
    (diverged,) = [event for event in told if event.data["trained_by"] == "diverged"]
    assert diverged.data["metrics"]["loss"] is None  # type: ignore[index]

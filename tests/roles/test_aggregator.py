"""The aggregator on both brokers: versions, manifests, repeats, restarts, one writer, the end of a run."""

import asyncio
from typing import Any

import orjson
import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, TopicPartition
from llmos_stream.codec import Layout
from llmos_stream.errors import BrokerUnavailable, ConfigError, FederationFinished
from llmos_stream.log.control import EVERYBODY
from llmos_stream.log.events import emit
from llmos_stream.roles.aggregator import Initial, run_aggregator
from llmos_stream.roles.aggregator.publisher import Publisher, group_of
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import Call, FaultyBroker
from llmos_stream.types import EventKind, TensorSpec
from tests.federation import event
from tests.roles.aids import LAYOUT, aggregator, control_of, delta_of, initial, settings_for, update


async def test_version_0_is_the_initial_weights(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation)) as running:
        version = await running.version(0)
    assert version.head.parent is None
    assert version.head.manifest == ()
    assert torch.equal(version.weights, initial().weights)
    assert version.layout == LAYOUT


async def test_a_full_buffer_becomes_a_version_with_its_manifest(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    async with aggregator(broker, settings) as running:
        first = await running.send(update(delta_of(1.0), sequence=5, num_examples=30))
        second = await running.send(update(delta_of(2.0), client_id="b", num_examples=10), "b")
        version = await running.version(1)
        folded = await running.events("update_folded", 2)
    assert torch.allclose(version.weights, delta_of((30 * 1.0 + 10 * 2.0) / 40))
    a, b = version.head.manifest
    assert (a.client_id, a.sequence, a.offset, a.num_examples, a.staleness, a.weight) == ("a", 5, first, 30, 0, 30.0)
    assert (b.client_id, b.sequence, b.offset, b.num_examples, b.staleness, b.weight) == ("b", 0, second, 10, 0, 10.0)
    assert [event.data["client_id"] for event in folded] == ["a", "b"]
    assert version.head.rule["aggregation"] == settings.aggregation.model_dump(
        mode="json",
        exclude={
            "options",
            "max_step",
            "history",
            "quorum",
            "grace_seconds",
            "fragments",
            "one_of_a_client",
        },  # recorded where they decide something
    )
    assert version.head.build["torch"] == torch.__version__


async def test_a_repeat_is_counted_once(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation)) as running:
        for sequence in (0, 0, 1):
            await running.send(update(delta_of(1.0), sequence=sequence))
        version = await running.version(2)
        duplicate = await running.events("update_duplicate", 1)
    assert torch.equal(version.weights, delta_of(2.0))
    assert (duplicate[0].data["client_id"], duplicate[0].data["sequence"]) == ("a", 0)


async def test_staleness_is_taken_from_the_base_version_named(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, staleness={"kind": "polynomial", "a": 0.5})
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), sequence=0))
        await running.version(1)
        await running.send(update(delta_of(1.0), sequence=1, base_version=1))
        await running.send(update(delta_of(1.0), sequence=2, base_version=0))
        version = await running.version(3)
    assert version.head.manifest[0].staleness == 2
    expected = delta_of(2.0 + 3**-0.5)
    assert torch.allclose(version.weights, expected)


async def test_the_deadline_makes_a_version_of_what_there_is(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": 8, "deadline_seconds": 0.2})
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        version = await running.version(1)
    assert len(version.head.manifest) == 1


async def test_interleaved_chunks_of_many_clients(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": 3})
    async with aggregator(broker, settings) as running:
        clients = ["a", "b", "c"]
        messages = [update(delta_of(float(n)), 64, client_id=name) for n, name in enumerate(clients)]
        async with broker.producer() as producer:
            for place in range(max(map(len, messages))):
                for name, message in zip(clients, messages, strict=True):
                    if place < len(message):
                        await producer.send(running.topics.updates, message[place], key=name.encode(), partition=0)
        version = await running.version(1)
    assert torch.allclose(version.weights, delta_of(1.0))


async def test_a_restart_goes_on_and_reads_the_buffered_again(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    async with aggregator(broker, settings) as running:
        for sequence in range(3):
            await running.send(update(delta_of(1.0), sequence=sequence))
        await running.version(1)  # the third waits in the buffer
    topic, group = running.topics.updates, group_of(running.topics)
    async with broker.producer(group), broker.reader([topic], start="committed", group=group) as reader:
        committed = await reader.committed(TopicPartition(topic, 0))
    async with aggregator(broker, settings) as running:
        offset = await running.send(update(delta_of(1.0), sequence=3, base_version=1))
        version = await running.version(2)
    assert [item.sequence for item in version.head.manifest] == [2, 3]
    assert committed == version.head.manifest[0].offset < offset
    assert torch.equal(version.weights, delta_of(2.0))


async def test_a_repeat_is_known_after_a_restart(broker: Broker, federation: str) -> None:
    """A client that is unsure sends again, and the aggregator has been started anew meanwhile."""
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        for client in ("a", "b"):
            await running.send(update(delta_of(1.0), client_id=client, sequence=7), client)
        await running.version(2)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), client_id="a", sequence=7), "a")
        await running.send(update(delta_of(1.0), client_id="a", sequence=8), "a")
        version = await running.version(3)
        duplicates = await running.events("update_duplicate", 1)
    assert [(item.client_id, item.sequence) for item in version.head.manifest] == [("a", 8)]
    assert (duplicates[0].data["client_id"], duplicates[0].data["sequence"]) == ("a", 7)
    assert torch.equal(version.weights, delta_of(3.0))


async def test_sequences_of_clients_long_gone_leave_the_log(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, staleness={"kind": "constant", "maximum": 1})
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), client_id="gone"), "gone")
        await running.version(1)
        for sequence in range(3):
            await running.send(
                update(delta_of(1.0), client_id="here", sequence=sequence, base_version=sequence + 1), "here"
            )
            await running.version(sequence + 2)
        control = await control_of(running, sequences_of=EVERYBODY)
    assert list(control.sequences) == ["here"]
    assert control.sequences["here"][:2] == [2, 3]


async def test_the_run_ends_at_the_version_cap_and_says_so(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, stop={"max_versions": 2})
    async with aggregator(broker, settings) as running:
        for sequence in range(4):
            await running.send(update(delta_of(1.0), sequence=sequence))
        end = await running.task
        finished = await running.events("run_finished", 1)
        control = await control_of(running)
    assert end is not None
    assert (end.reason, end.version) == ("max_versions", 2)
    assert control.finished == end
    assert finished[0].data["reason"] == "max_versions"
    async with Offload(1) as offload:
        with pytest.raises(FederationFinished, match="ended at version 2"):
            await run_aggregator(broker, settings, initial, offload, Shutdown())


@pytest.mark.parametrize(
    ("stop", "values", "reason"),
    [
        ({"target": 0.9}, [0.1, 0.95], "target"),
        ({"patience": 2}, [0.5, 0.4, 0.3], "patience"),
        ({"max_seconds": 0.3}, [], "max_seconds"),
    ],
)
async def test_the_run_ends_by_evaluations_or_time(
    broker: Broker, federation: str, stop: dict[str, object], values: list[float], reason: str
) -> None:
    async with aggregator(broker, settings_for(federation, stop=stop)) as running:
        await running.version(0)
        async with broker.producer() as producer:
            for version, value in enumerate(values):
                if version:
                    await running.send(update(delta_of(1.0), sequence=version, base_version=version - 1))
                    await running.version(version)
                measured = event(EventKind.EVALUATION, "evaluator", version=version, metrics={"accuracy": value})
                await emit(producer, running.topics.evaluations, measured)
        end = await running.task
    assert end is not None
    assert end.reason == reason


@pytest.mark.parametrize(
    ("version", "value"),
    [(10**15, 0.99), (-1, 0.99), (0, 1e9), (0, 1.5), (0, -3.0), (0, "0.99"), (0, True), (0, [1.0])],
)
async def test_an_evaluation_that_nobody_can_have_made_ends_nothing(
    federation: str, version: int, value: object
) -> None:
    broker = MemoryBroker()
    async with aggregator(broker, settings_for(federation, stop={"target": 0.9})) as running:
        await running.version(0)
        forged = {"kind": "evaluation", "role": "evaluator", "time_ms": 0}
        forged |= {"data": {"version": version, "metrics": {"accuracy": value}}}
        async with broker.producer() as producer:
            await producer.send(running.topics.evaluations, orjson.dumps(forged), key=b"evaluator")
            await running.send(update(delta_of(1.0)))
            await running.version(1)
            await running.send(update(delta_of(1.0), sequence=1, base_version=1))
            await running.version(2)
            assert not running.task.done()
            measured = event(EventKind.EVALUATION, "evaluator", version=1, metrics={"accuracy": 0.95})
            await emit(producer, running.topics.evaluations, measured)
        end = await running.task
    assert end is not None
    assert end.reason == "target"


async def test_another_model_is_refused_and_fences_nobody(broker: Broker, federation: str) -> None:
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        layout = Layout.of({"w": torch.zeros(3)})
        async with Offload(1) as offload:
            with pytest.raises(ConfigError, match=r"w is float32 \[3\] here and float32 \[40\] there"):
                await run_aggregator(broker, settings, lambda: Initial(layout, torch.zeros(3)), offload, Shutdown())
        await running.send(update(delta_of(1.0)))
        await running.version(1)


@pytest.mark.parametrize(
    ("sections", "layout", "message"),
    [
        ({"wire": {"pending_bytes": 1 << 20}}, Layout.of({"w": torch.zeros(1 << 19)}), "wire.pending_bytes"),
        ({}, Layout(tuple(TensorSpec(f"{n:0100}", (1,), "float32") for n in range(9000))), "task.share"),
    ],
    ids=["payload", "head"],
)
async def test_a_model_that_nobody_could_read_is_refused_at_start(
    federation: str, sections: dict[str, dict[str, int]], layout: Layout, message: str
) -> None:
    settings = settings_for(federation, **sections)
    async with Offload(1) as offload:
        with pytest.raises(ConfigError, match=message):
            await run_aggregator(
                MemoryBroker(), settings, lambda: Initial(layout, torch.zeros(layout.numel)), offload, Shutdown()
            )


async def test_updates_that_retention_deleted_are_passed_over(
    federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The committed offset lies before the oldest record left: the run goes on with what there is."""
    broker, settings = MemoryBroker(partition_bytes=1 << 16), settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), client_id="before"))
        await running.version(1)
    async with broker.producer() as producer:
        for _ in range(10):
            await producer.send(running.topics.updates, b"rubbish" * 1500, key=b"a", partition=0)
    async with broker.reader([running.topics.updates], start="earliest") as reader:
        oldest = await reader.position(reader.partitions[0])
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0), client_id="after", base_version=1))
        version = await running.version(2)
    assert oldest > 1
    assert "updates were deleted by retention" in caplog.text
    assert "paused" not in caplog.text
    assert [item.client_id for item in version.head.manifest] == ["after"]


async def test_a_buffered_update_that_is_read_again_still_holds_its_offset(federation: str) -> None:
    """What waits for a version must be read once more after a crash, however often it was read before."""
    broker, told = MemoryBroker(), asyncio.Event()
    settings = settings_for(federation, aggregation={"buffer_size": 2})

    async def rewind(call: Call) -> Any:
        if call.operation == "poll" and call.topics == (f"{federation}.updates",) and told.is_set():
            told.clear()
            await call.target.seek_to_beginning()
        return await call.proceed()

    async with aggregator(FaultyBroker(broker, rewind), settings) as running:
        for _ in range(2):
            await running.send(update(delta_of(1.0)))
        await running.events("update_duplicate", 1)
        told.set()
        await running.events("update_duplicate", 3)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(2.0), client_id="b"))
        version = await running.version(1)
    assert [item.client_id for item in version.head.manifest] == ["a", "b"]


async def test_one_client_with_many_updates_on_several_partitions(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, topics={"updates_partitions": 3}, aggregation={"buffer_size": 6})
    async with aggregator(broker, settings) as running:
        for name in "abcdef":
            await running.send(update(delta_of(1.0), client_id=name), name)
        version = await running.version(1)
    assert {item.client_id for item in version.head.manifest} == set("abcdef")
    assert len({item.partition for item in version.head.manifest}) > 1


async def test_a_stop_does_not_wait_for_the_backlog(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What has been read but not folded is read again: nothing is lost by leaving it."""
    settings, commit = settings_for(federation), Publisher.commit
    async with aggregator(broker, settings) as running:
        await running.version(0)

        async def stops_at_two(self: Publisher, offsets: Any, version: Any = None, end: Any = None) -> Any:
            if version is not None and version.encoded.head.number == 2:
                running.federation.shutdown.request()
            return await commit(self, offsets, version, end)

        monkeypatch.setattr(Publisher, "commit", stops_at_two)
        async with broker.producer() as producer:
            records = [record for sequence in range(20) for record in update(delta_of(1.0), sequence=sequence)]
            await producer.send_all(running.topics.updates, records, key=b"a")
        await running.task
    monkeypatch.setattr(Publisher, "commit", commit)
    async with aggregator(broker, settings) as running:
        version = await running.version(20)
        published = await running.events("version_published", 21)
    assert torch.equal(version.weights, delta_of(20.0))
    assert [event.data["version"] for event in published] == list(range(21))


async def test_no_offset_passes_rubbish_that_is_not_in_quarantine(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash right after a version must not swallow the bad frame behind it."""
    told: list[tuple[int, int]] = []
    commit = Publisher.commit

    async def noted(self: Publisher, offsets: Any, version: Any = None, end: Any = None) -> Any:
        told.append((max(offsets.values(), default=0), len(self._quarantine)))
        return await commit(self, offsets, version, end)

    monkeypatch.setattr(Publisher, "commit", noted)
    async with aggregator(broker, settings_for(federation)) as running:
        await running.version(0)
        async with broker.producer() as producer:
            good = update(delta_of(1.0))
            first = await producer.send_all(running.topics.updates, [*good, b"rubbish"], key=b"a")
        entry = (await running.quarantined(1))[0]
    rubbish = first.offset + len(good)
    assert entry["offset"] == rubbish
    assert all(entries for offset, entries in told if offset > rubbish), told


async def test_what_was_forgotten_is_refused_under_a_longer_memory_too(broker: Broker, federation: str) -> None:
    """staleness.maximum is raised by a restart: repeats of what the shorter one forgot must not count again."""
    short = settings_for(federation, staleness={"kind": "constant", "maximum": 1})
    async with aggregator(broker, short) as running:
        await running.send(update(delta_of(1.0), client_id="gone"), "gone")
        for number in range(1, 4):
            await running.version(number)
            await running.send(update(delta_of(1.0), client_id="here", sequence=number, base_version=number), "here")
        await running.version(4)
    async with aggregator(broker, settings_for(federation, staleness={"maximum": 20})) as running:
        await running.send(update(delta_of(1.0), client_id="gone"), "gone")
        await running.send(update(delta_of(1.0), client_id="here", sequence=4, base_version=4), "here")
        version = await running.version(5)
        entry = (await running.quarantined(1))[0]
    assert entry["reason"] == "too_stale"
    assert [item.client_id for item in version.head.manifest] == ["here"]


async def test_an_end_whose_acknowledgement_was_lost_is_the_end(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, commit = settings_for(federation, stop={"max_versions": 2}), Publisher.commit

    async def unheard(self: Publisher, offsets: Any, version: Any = None, end: Any = None) -> Any:
        pointer = await commit(self, offsets, version, end)
        if end is not None:
            raise BrokerUnavailable("whether the commit holds is unknown")
        return pointer

    monkeypatch.setattr(Publisher, "commit", unheard)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        for sequence in range(5):
            await running.send(update(delta_of(1.0), sequence=sequence))
        end = await running.task
        control = await control_of(running)
    assert end is not None
    assert end == control.finished
    assert control.latest is not None
    assert control.latest.version == end.version == 2


async def test_a_repeat_of_what_waits_tells_nothing_of_it_before_its_version(broker: Broker, federation: str) -> None:
    """What the log says was folded is not folded again after a crash: it may say so only together with the version."""
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    async with aggregator(broker, settings) as running:
        await running.version(0)
        await running.send(update(delta_of(1.0)))
        await running.send(update(delta_of(1.0)))
        await running.events("update_duplicate", 1)
        await running.kill()
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(3.0), sequence=1))
        version = await running.version(1)
    assert [item.sequence for item in version.head.manifest] == [0, 1]

"""The whole path with real training, on both brokers: clients, aggregator, evaluator, until the run ends."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.broker import Broker, MemoryBroker, Topics, connect
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.log import RunEnd
from llmos_stream.log.events import follow_events
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import evaluate_once, run_evaluator
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.training import load_task
from llmos_stream.training.model_evaluator import Evaluation
from llmos_stream.types import Event, VersionKind
from llmos_stream.wire.evaluations import site_of
from tests.conftest import KafkaNode
from tests.federation import read_versions
from tests.roles.aids import settings_for


def _settings(federation: str, **sections: dict[str, Any]) -> Settings:
    given: dict[str, dict[str, Any]] = {
        "task": {"entry": "blobs", "shards": 3},
        "aggregation": {"buffer_size": 2, "deadline_seconds": 2.0},
        "staleness": {"kind": "polynomial", "maximum": 100},
        "codec": {"name": "int8"},
        "client": {"lr": 0.1, "wait_seconds": 1.0},
        "stop": {"target": 0.9, "max_versions": 200},
    }
    given["versions"] = {"full_every": 4}  # so that everybody follows a chain of deltas
    for section, fields in sections.items():
        given[section] = given.get(section, {}) | fields
    return settings_for(federation, **given)


def _client(settings: Settings, shard: int, **traits: object) -> Settings:
    own = settings.client.model_copy(update={"shard": shard, "id": f"client-{shard}", **traits})
    return settings.model_copy(update={"client": own})


class Federation:
    """Runs every role in this process and keeps the events."""

    def __init__(self, broker: Broker, settings: Settings, clients: list[Settings], folder: Path | None = None) -> None:
        self.broker, self.settings, self.clients, self.folder = broker, settings, clients, folder
        self.events: list[Event] = []
        self.updates: list[int] = []
        self.last: Evaluation | None = None
        self.shutdown = Shutdown()

    async def run(self) -> RunEnd | None:
        over = Shutdown()
        ended: list[RunEnd | None] = []
        async with Offload(2) as offload:
            task = load_task(self.settings.task, self.settings.client)

            async def roles() -> None:
                end, self.last, *self.updates = await run_all(
                    run_aggregator(
                        self.broker, self.settings, lambda: initial_of(task, self.settings), offload, self.shutdown
                    ),
                    run_evaluator(self.broker, self.settings, task, offload, self.shutdown),
                    *(self._client(own, offload) for own in self.clients),
                )
                over.request()
                ended.append(end)

            await run_all(
                roles(), follow_events(self.broker, Topics(self.settings.federation.name), self.events.append, over)
            )
        return ended[0]

    async def _client(self, own: Settings, offload: Offload) -> int:
        name = own.client.id or ""
        with ClientState(name, None if self.folder is None else self.folder / name) as state:
            task = load_task(own.task, own.client)
            return await run_client(self.broker, own, task, state, offload, self.shutdown)

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


@pytest.mark.parametrize("full_every", [1, 4])
async def test_three_unequal_clients_train_one_model_to_its_target(
    broker: Broker, federation: str, full_every: int
) -> None:
    settings = _settings(federation, versions={"full_every": full_every})
    run = Federation(broker, settings, [_client(settings, shard) for shard in range(3)])
    end = await run.run()
    assert end is not None
    assert end.reason == "target"
    assert run.last is not None
    assert run.last.version == end.version
    # Every version was evaluated, and every update sent was folded, buffered at the end, or sent after it.
    assert {event.data["version"] for event in run.of("evaluation")} == set(range(end.version + 1))
    assert {event.data["reason"] for event in run.of("client_left")} == {f"run ended: {end.reason}"}
    assert sum(run.updates) == len(run.of("update_sent")) >= len(run.of("update_folded")) == 2 * end.version
    async with broker.reader([f"{federation}.models"], start="earliest") as reader:
        versions = [version async for version in read_versions(reader, settings.wire)]
    assert [version.head.number for version in versions] == list(range(end.version + 1))
    full = [version.head.number for version in versions if version.head.kind is VersionKind.FULL]
    assert full == list(range(0, end.version + 1, full_every))
    identities = [(item.client_id, item.sequence) for version in versions for item in version.head.manifest]
    assert len(identities) == len(set(identities))


async def test_slow_late_and_leaving_clients_block_nothing(broker: Broker, federation: str) -> None:
    settings = _settings(
        federation, stop={"target": None, "max_versions": 12}, client={"min_train_seconds": 0.02, "wait_seconds": 0.05}
    )
    clients = [
        _client(settings, 0),
        _client(settings, 1, max_updates=2),
        _client(settings, 2, speed=0.02, join_delay_seconds=0.2),
    ]
    run = Federation(broker, settings, clients)
    end = await run.run()
    assert end is not None
    assert (end.reason, end.version) == ("max_versions", 12)
    left = {str(event.data["client_id"]): event.data for event in run.of("client_left")}
    assert (left["client-1"]["reason"], left["client-1"]["updates"]) == ("client.max_updates reached", 2)
    folded = [event.data["client_id"] for event in run.of("update_folded")]
    assert folded.count("client-0") >= 24 - 2 - folded.count("client-2")
    slow = [event.data for event in run.of("update_sent") if event.data["client_id"] == "client-2"]
    assert all(float(str(data["train_seconds"])) >= 0.02 / 0.02 for data in slow)


async def test_a_client_that_is_too_slow_is_told_and_starts_from_the_newest(broker: Broker, federation: str) -> None:
    settings = _settings(
        federation,
        staleness={"maximum": 0},
        aggregation={"buffer_size": 1},
        stop={"target": None, "max_versions": 20},
        client={"wait_seconds": 0.2},
    )
    clients = [_client(settings, 0, min_train_seconds=0.1), _client(settings, 1, min_train_seconds=1.0)]
    run = Federation(broker, settings, clients)
    end = await run.run()
    assert end is not None
    assert end.version == 20
    told = [event for event in run.of("update_rejected") if event.role == "client"]
    assert {(event.data["client_id"], event.data["reason"]) for event in told} >= {("client-1", "too_stale")}
    assert all("staleness.maximum is 0" in str(event.data["detail"]) for event in told)
    # What it was told of was not sent, and it went on.
    left = {str(event.data["client_id"]): event.data for event in run.of("client_left")}
    sent = [event for event in run.of("update_sent") if event.data["client_id"] == "client-1"]
    assert left["client-1"]["updates"] == len(sent)
    trained_on = [event.data["base_version"] for event in sent]
    assert len(trained_on) == len(set(trained_on))


@pytest.mark.kafka
@pytest.mark.own_kafka
@pytest.mark.full  # tests/broker has what a restart does to producers and readers
async def test_a_restart_of_kafka_costs_time_and_nothing_else(kafka: KafkaNode, federation: str) -> None:
    node = kafka.own()
    settings = _settings(federation, stop={"target": None, "max_versions": 30}, client={"min_train_seconds": 0.1})
    async with connect(kafka.settings()) as broker:
        run = Federation(broker, settings, [_client(settings, shard) for shard in range(3)])
        ended = asyncio.ensure_future(run.run())
        while len(run.of("version_published")) < 5:
            assert not ended.done()
            await asyncio.wait([ended], timeout=0.02)
        await asyncio.to_thread(node.restart)
        end = await ended
        async with broker.reader([f"{federation}.models"], start="earliest") as reader:
            versions = [version async for version in read_versions(reader, settings.wire)]
    assert end is not None
    assert end.version == 30
    assert [version.head.number for version in versions] == list(range(31))
    identities = [(item.client_id, item.sequence) for version in versions for item in version.head.manifest]
    assert len(identities) == len(set(identities))


@pytest.mark.parametrize(
    "sections",
    [
        {"aggregation": {"strategy": "fedasync", "mixing": 0.6}, "staleness": {"kind": "hinge", "a": 1.0, "b": 2.0}},
        {"server_optimizer": {"name": "sgd", "lr": 0.7, "momentum": 0.5}},
        {"server_optimizer": {"name": "adam", "lr": 0.03}},
        {"server_optimizer": {"name": "yogi", "lr": 0.03}},
        {"server_optimizer": {"name": "adagrad", "lr": 0.1}},
        {"codec": {"name": "topk", "fraction": 0.1}},
        {"codec": {"name": "int4"}},
        {"codec": {"name": "bfloat16"}},
        {"task": {"share": "no-norm"}},
    ],
    ids=lambda sections: "-".join(str(next(iter(fields.values()))) for fields in sections.values()),
)
async def test_every_rule_and_codec_learns(federation: str, sections: dict[str, dict[str, Any]]) -> None:
    settings = _settings(federation, **sections)
    run = Federation(MemoryBroker(), settings, [_client(settings, shard) for shard in range(3)])
    end = await run.run()
    assert end is not None
    assert end.reason == "target", run.last


@pytest.mark.parametrize("full_every", [1, 4])
async def test_the_evaluator_measures_every_nth_version_and_the_last(federation: str, full_every: int) -> None:
    settings = _settings(
        federation,
        evaluator={"every": 3},
        stop={"target": None, "max_versions": 7},
        aggregation={"buffer_size": 1},
        versions={"full_every": full_every},
    )
    broker = MemoryBroker()
    run = Federation(broker, settings, [_client(settings, 0)])
    await run.run()
    measured = [event.data["version"] for event in run.of("evaluation") if site_of(event) is None]
    assert measured == [0, 3, 6, 7]
    async with Offload(1) as offload:
        again = await evaluate_once(broker, settings, load_task(settings.task, settings.client), offload, Shutdown())
    assert again is not None
    assert run.last is not None
    assert (again.version, again.metrics) == (7, run.last.metrics)


async def test_a_client_keeps_its_sequence_and_residual_across_restarts(federation: str, tmp_path: Path) -> None:
    settings = _settings(federation, stop={"target": None, "max_versions": 2}, aggregation={"buffer_size": 1})
    broker = MemoryBroker()
    run = Federation(broker, settings, [_client(settings, 0, max_updates=2)], tmp_path)
    await run.run()
    used = [int(str(event.data["sequence"])) for event in run.of("update_sent")]
    with ClientState("client-0", tmp_path / "client-0") as state:
        assert state.take_sequence() > max(used)
        residual = state.residual()
    assert residual is not None
    assert float(residual.abs().max()) > 0  # int8 owes something after two updates


async def test_a_client_with_another_model_is_told_which_tensor_differs(federation: str) -> None:
    settings = _settings(federation)
    other = _client(settings.model_copy(update={"task": settings.task.model_copy(update={"entry": "noop:100"})}), 0)
    with pytest.raises(ConfigError, match=r"task\.entry, task\.share: .* here and .* there"):
        await Federation(MemoryBroker(), settings, [other]).run()


async def test_a_stop_in_mid_run_drains_every_role(federation: str) -> None:
    settings = _settings(federation, stop={"target": None, "max_versions": None})
    run = Federation(MemoryBroker(), settings, [_client(settings, shard) for shard in range(3)])
    ended = asyncio.ensure_future(run.run())
    while not run.of("evaluation"):
        assert not ended.done()
        await asyncio.wait([ended], timeout=0.02)
    run.shutdown.request()
    assert await ended is None
    assert {event.data["reason"] for event in run.of("client_left")} == {"stopped"}

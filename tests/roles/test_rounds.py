"""Rounds of FedAvg and quorums with grace: the aggregator and real clients, in virtual time where time decides."""

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.testing import LoopClock, run_in_virtual_time, running_federation
from llmos_stream.training import load_task, local
from llmos_stream.types import Event, VersionHead
from tests.replay.aids import replay_log
from tests.roles.aids import aggregator, delta_of, settings_for, update


@pytest.mark.parametrize("late", ["refuse", "drop"])
async def test_what_comes_late_is_refused_or_dropped_as_told(
    broker: Broker, federation: str, late: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Three clients work on version 0; two make the round. One of them sends twice for the next."""
    settings = settings_for(federation, aggregation={"strategy": "fedavg", "buffer_size": 2, "options": {"late": late}})
    async with aggregator(broker, settings) as running:
        for client in ("a", "b"):
            await running.send(update(delta_of(1.0), client_id=client))
        await running.version(1)
        await running.send(update(delta_of(9.0), client_id="slow"))
        await running.send(update(delta_of(1.0), client_id="a", sequence=1, base_version=1))
        await running.send(update(delta_of(9.0), client_id="a", sequence=2, base_version=1))
        await running.send([b"rubbish"], "x")
        await running.send(update(delta_of(3.0), client_id="b", sequence=1, base_version=1))
        version = await running.version(2)
        refused = await running.events("update_rejected", 3)
        entries = await running.quarantined(3 if late == "refuse" else 1)
    assert torch.equal(version.weights, delta_of(3.0))  # 0 + (1 + 1) / 2 + (1 + 3) / 2
    assert [item.client_id for item in version.head.manifest] == ["a", "b"]
    reasons = [event.data["reason"] for event in refused]
    assert sorted(map(str, reasons)) == ["malformed", "one_a_round", "too_stale"]
    kept = Counter(entry["reason"] for entry in entries)
    assert kept == Counter(reasons if late == "refuse" else ["malformed"])
    warned = [record.message for record in caplog.records if "refused an update" in record.message]
    assert len(warned) == len(entries)


def _live(
    most: int, speeds: dict[str, float], monkeypatch: pytest.MonkeyPatch, **sections: Any
) -> tuple[list[Event], list[VersionHead]]:
    """Clients that need a second at speed 1, until that many versions are made: their events, and their heads."""
    monkeypatch.setattr(local, "perf_counter", lambda: 0.0)

    async def run(clock: LoopClock) -> tuple[list[Event], list[VersionHead]]:
        broker, shutdown = MemoryBroker(clock=clock.monotonic), Shutdown()
        settings = [
            settings_for(
                "rounds",
                task={"entry": "noop:100"},
                client={"id": name, "speed": speed, "min_train_seconds": 1.0, "wait_seconds": 1000.0},
                stop={"max_versions": most},
                **sections,
            )
            for name, speed in speeds.items()
        ]
        task = load_task(settings[0].task, settings[0].client)
        async with (
            Offload(3) as offload,
            running_federation(initial_of(task, settings[0]), settings[0], broker, clock=clock) as running,
        ):
            await run_all(
                *(
                    run_client(broker, own, task, ClientState(own.client.id or "", None), offload, shutdown, clock)
                    for own in settings
                )
            )
            await running.events("run_finished", 1)
            published = await running.events("version_published", 1 + most)
        async with replay_log(broker, settings[0]) as log:
            return published, [entry.head for entry in log.index.versions.values()]

    return run_in_virtual_time(run)


def test_more_clients_than_a_round_needs_are_at_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five work and three make a round; the two slow ones never come in time, and nobody waits for them."""
    speeds = {"a": 1.0, "b": 0.9, "c": 0.8, "d": 0.2, "e": 0.1}
    rounds = {"strategy": "fedavg", "buffer_size": 3}
    published, heads = _live(8, speeds, monkeypatch, aggregation=rounds)
    assert [[item.client_id for item in head.manifest] for head in heads[1:]] == [["a", "b", "c"]] * 8
    assert {item.staleness for head in heads for item in head.manifest} == {0}
    assert _seconds(published) == pytest.approx([1.25] * 7, abs=0.2)


def test_an_update_in_each_round_of_all_who_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where as many work as a round needs, the slowest decides."""
    published, heads = _live(4, {"a": 1.0, "b": 0.5}, monkeypatch, aggregation={"strategy": "fedavg", "buffer_size": 2})
    assert [sorted(item.client_id for item in head.manifest) for head in heads[1:]] == [["a", "b"]] * 4
    assert _seconds(published) == pytest.approx([2.0] * 3, abs=0.2)


def test_after_a_quorum_those_who_come_within_the_grace_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two of four are a quorum after a second; the third comes half a second later, the fourth never does in time."""
    speeds = {"a": 1.0, "b": 1.0, "c": 1 / 1.5, "d": 0.1}
    rounds = {"strategy": "fedavg", "buffer_size": 4, "quorum": 2, "grace_seconds": 0.8}
    published, heads = _live(5, speeds, monkeypatch, aggregation=rounds)
    assert [sorted(item.client_id for item in head.manifest) for head in heads[1:]] == [["a", "b", "c"]] * 5
    assert _seconds(published) == pytest.approx([1.8] * 4, abs=0.3)


def test_a_quorum_makes_versions_without_rounds_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """With FedBuff the slow one is folded when it comes, stale."""
    buffered = {"buffer_size": 4, "quorum": 2, "grace_seconds": 0.0}
    _, heads = _live(12, {"a": 1.0, "b": 1.0, "c": 0.22}, monkeypatch, aggregation=buffered)
    assert all(len(head.manifest) >= 2 for head in heads[1:])
    slow = [item.staleness for head in heads for item in head.manifest if item.client_id == "c"]
    assert slow
    assert min(slow) >= 2


def _seconds(published: list[Event]) -> list[float]:
    """Between one version and the next."""
    times = [event.time_ms / 1000 for event in published if event.data["version"]]
    return [later - earlier for earlier, later in pairwise(times)]

"""Local steps that follow a client's speed: what the aggregator tells, and what a client does with it."""

from pathlib import Path

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown, run_all
from llmos_stream.testing import LoopClock, run_in_virtual_time, running_federation
from llmos_stream.training import load_task, local
from llmos_stream.wire.control import Leader
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.roles.test_client_life import Life, _settings


async def test_the_leader_tells_how_fast_the_fastest_client_is(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation, aggregation={"buffer_size": 3})) as running:
        for client, metrics in (("a", {"steps_per_second": 2.0}), ("b", {"steps_per_second": 5.0}), ("c", {})):
            await running.send(update(delta_of(1.0), client_id=client, metrics=metrics), client)
        await running.version(1)
        async with broker.reader([running.topics.control], start="earliest") as reader:
            control = ControlView(reader)
            while control.leader is None or not control.leader.steps_per_second:
                await control.poll(0.1)
    assert control.leader.steps_per_second == 5.0


def test_a_client_does_as_many_steps_as_suit_its_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight steps take it 2 s: at 4 steps a second it is a third as fast as the fastest, then as fast as any."""
    monkeypatch.setattr(local, "perf_counter", lambda: 0.0)
    life = Life(_settings(local_steps="auto", epochs=8, wait_seconds=1000.0), tmp_path)

    def leader(fastest: float) -> Leader:
        return Leader(term=1, instance="script", steps_per_second=fastest)

    life.run([(0, 0), (1, leader(12.0)), (10, 1), (15, leader(1.0)), (20, 2), (30, "stop")])
    told = [dict(head.metrics) for head in life.heads]
    assert [metrics["local_steps"] for metrics in told] == [8, 2, 8]  # floor(4 / 12 * 8)
    assert [metrics["steps_per_second"] for metrics in told] == [4, 4, 4]
    assert life.sent == [(2, 0), (10.5, 1), (22, 2)]  # two steps take it half a second
    assert [head.num_examples for head in life.heads] == [1, 1, 1]  # one example is all that it has


@pytest.mark.parametrize(("steps", "staleness"), [("none", 6.5), ("auto", 2.6)])
def test_a_slow_client_that_does_fewer_steps_is_less_stale(
    steps: str, staleness: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One client needs a second for its ten steps, the other five; each update makes a version. Seconds are virtual."""
    monkeypatch.setattr(local, "perf_counter", lambda: 0.0)
    told: list[int] = []

    async def run(clock: LoopClock) -> None:
        broker, shutdown = MemoryBroker(clock=clock.monotonic), Shutdown()
        settings = [
            settings_for(
                "speeds",
                task={"entry": "noop:100"},
                client={"id": name, "speed": speed, "min_train_seconds": 1.0, "epochs": 10}
                | ({} if steps == "none" else {"local_steps": steps}),
                stop={"max_versions": 60},
            )
            for name, speed in (("fast", 1.0), ("slow", 0.2))
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
            for event in await running.events("update_folded", 50):
                if event.data["client_id"] == "slow":
                    told.append(int(event.data["staleness"]))  # type: ignore[call-overload]

    run_in_virtual_time(run)
    later = told[1:]  # the first is of whole epochs
    assert len(later) >= (6 if steps == "none" else 20)
    assert abs(sum(later) / len(later) - staleness) <= 0.5

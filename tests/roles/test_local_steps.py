"""Local steps that follow a client's speed: what the aggregator tells, and what a client does with it."""

from pathlib import Path

import pytest

from llmos_stream.broker import Broker
from llmos_stream.log import ControlView
from llmos_stream.training import local
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
    """Eight steps take it 2 s: at 4 steps a second it is a third as fast as the fastest, then as fast."""
    monkeypatch.setattr(local, "perf_counter", lambda: 0.0)
    life = Life(_settings(local_steps="auto", epochs=8, wait_seconds=1000.0), tmp_path)

    def leader(fastest: float) -> Leader:
        return Leader(term=1, instance="script", steps_per_second=fastest)

    life.run([(0, 0), (1, leader(12.0)), (10, 1), (15, leader(1.0)), (20, 2), (30, "stop")])
    told = [dict(head.metrics) for head in life.heads]
    assert [metrics["local_steps"] for metrics in told] == [8, 2, 8]  # floor(4 / 12 * 8)
    # Every training takes it 2 s here, whatever it does.
    assert [metrics["steps_per_second"] for metrics in told] == [4, 1, 4]
    assert [head.num_examples for head in life.heads] == [1, 1, 1]  # one example is all that it has

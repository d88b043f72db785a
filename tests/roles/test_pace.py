"""Backpressure on both brokers: the aggregator tells how busy it is, and clients leave it the time it asks for."""

from itertools import pairwise

import pytest
import torch

from llmos_stream.broker import Broker
from llmos_stream.core import Pace, client_policy
from llmos_stream.core.client_policy import PolicyAction, PolicyState
from llmos_stream.log import ControlView
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import Client, ClientState, run_client
from llmos_stream.runtime import Offload, run_all
from llmos_stream.training import load_task
from llmos_stream.training.shared_model import Trained
from llmos_stream.wire.events import whole
from tests.federation import federation_of
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.roles.test_pipeline import Federation


async def test_the_leader_says_how_busy_it_is(broker: Broker, federation: str) -> None:
    async with aggregator(broker, settings_for(federation, aggregation={"buffer_size": 2})) as running:
        for client in "abcd":
            await running.send(update(delta_of(1.0), client_id=client), client)
        await running.version(2)
        published = await running.events("version_published", 3)
        async with broker.reader([running.topics.control], start="earliest") as reader:
            control = ControlView(reader)
            while control.leader is None or not control.leader.pace_seconds:
                await control.poll(0.1)
    # Four clients, none of which may take more than its share of the time: four times what an update costs.
    assert 0 < control.leader.pace_seconds < 60
    assert [event.data["pace_seconds"] != 0 for event in published] == [False, False, True]
    assert all(whole(event.data["lag"]) is not None for event in published)


async def test_clients_leave_the_time_that_they_are_asked_for(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the sending of one update to that of the next, by the clock that the client itself goes by."""
    sending: list[tuple[float, float]] = []
    decide = client_policy.decide

    def noted(state: PolicyState, now: float) -> tuple[PolicyState, PolicyAction]:
        state, action = decide(state, now)
        if isinstance(action, client_policy.Send):
            sending.append((now, state.heard.pace_seconds))
        return state, action

    monkeypatch.setattr(client_policy, "decide", noted)
    monkeypatch.setattr(Pace, "interval", lambda self, clients: 0.2)
    settings = settings_for(
        federation,
        task={"entry": "blobs", "shards": 1},
        client={"id": "client-0", "wait_seconds": 1.0},
        stop={"max_versions": 6},
    )
    run = Federation(broker, settings, [])
    async with Offload(1) as offload:
        paced = _PacedClient(run, offload)
        await run_all(run.run(), paced.run())
    assert [pace for _, pace in sending] == [0.2] * len(sending)
    assert len(sending) >= 5
    assert all(later - earlier >= 0.2 for (earlier, _), (later, _) in pairwise(sending))


class _PacedClient:
    """A client that joins once the aggregator has asked for a pace, of which an update of another tells it first."""

    def __init__(self, run: Federation, offload: Offload) -> None:
        self._run = run
        self._offload = offload

    async def run(self) -> None:
        broker, settings, shutdown = self._run.broker, self._run.settings, self._run.shutdown
        federation = federation_of(broker, settings, self._offload, shutdown)
        task = load_task(settings.task, settings.client)
        layout = initial_of(task, settings).layout
        await federation.wait_for_topics(*federation.topics.names)
        async with Client(federation, "other", layout, settings.codec, ClientState("other", None)) as other:
            await other.newest(None, 60.0)
            await other.publish(Trained(torch.zeros(layout.numel), 0, 1, {}, 0.0))
            while not other.heard().pace_seconds:
                await other.listen(0.5)
        await run_client(broker, settings, task, ClientState("client-0", None), self._offload, shutdown)

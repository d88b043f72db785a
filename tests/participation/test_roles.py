"""Aggregator and clients under an operator's rules and orders, on both brokers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import pytest
import torch

from llmos_stream import FederatedLearning
from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.errors import NotWanted
from llmos_stream.log.orders import order, order_of
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation, running_federation
from llmos_stream.training import load_task
from llmos_stream.types import ClientOrder, UpdateHead
from llmos_stream.wire import read_chunk, unpack_prelude
from tests.roles.aids import settings_for

pytestmark = pytest.mark.timeout(180)


def _settings(federation: str, **sections: Any) -> Settings:
    client = {"id": "ward-7", "wait_seconds": 0.05, **sections.pop("client", {})}
    return settings_for(federation, task={"entry": "noop:100"}, client=client, **sections)


@asynccontextmanager
async def _federation(broker: Broker, settings: Settings) -> AsyncIterator[RunningFederation]:
    initial = initial_of(load_task(settings.task, settings.client), settings)
    async with running_federation(initial, settings, broker) as running:
        await running.version(0)
        yield running


async def _take_part(broker: Broker, settings: Settings, shutdown: Shutdown | None = None) -> int:
    """Be the client of these settings to its end. Returns how many updates it has sent."""
    task, client_id = load_task(settings.task, settings.client), settings.client.id or ""
    async with Offload(1) as offload:
        with ClientState(client_id, None) as state:
            return await run_client(broker, settings, task, state, offload, shutdown or Shutdown())


async def _codecs(running: RunningFederation, count: int) -> list[str]:
    """How the first updates in the log are written."""
    found = []
    for record in await running.read(running.topics.updates, count):
        prelude = unpack_prelude(read_chunk(record.value or b"").body)
        assert prelude is not None
        assert isinstance(prelude.head, UpdateHead)
        found.append(prelude.head.codec.label)
    return found


async def test_a_client_that_is_forbidden_is_told_and_refused_until_it_is_allowed(
    broker: Broker, federation: str
) -> None:
    settings = _settings(federation)
    async with _federation(broker, settings) as running:
        async with asyncio.TaskGroup() as group:
            client = group.create_task(_expect_not_wanted(broker, settings))
            await running.version(1)
            wanted = ClientOrder(forbidden=True, reason="broken sensor")
            await order(broker, running.topics, "ward-7", wanted)
            assert "broken sensor" in await client
        (left,) = await running.events("client_left")
        assert left.data["reason"] == "not wanted: the operator has forbidden client ward-7: broken sensor"

        # The aggregator reads the order by itself: what comes before it has, counts.
        sequence = count(1000)
        while not await _is_refused(running, next(sequence)):
            pass
        (entry,) = await running.quarantined(1)
        assert entry["reason"] == "not_wanted"
        assert "broken sensor" in entry["detail"]
        (refused,) = await running.events("update_rejected")
        assert refused.data["reason"] == "not_wanted"

        assert (await order_of(broker, running.topics, "ward-7")).forbidden
        await order(broker, running.topics, "ward-7", ClientOrder())
        assert await order_of(broker, running.topics, "ward-7") == ClientOrder()
        allowed = _settings(federation, client={"max_updates": 1})
        assert await _take_part(broker, allowed) == 1


async def _is_refused(running: RunningFederation, sequence: int) -> bool:
    """What becomes of an update of ward-7."""
    await running.publish(torch.full((100,), 0.1), "ward-7", sequence=sequence)
    ends = {"update_folded", "update_rejected"}
    events = await running.events_until(
        lambda events: any(event.kind in ends and event.data["sequence"] == sequence for event in events)
    )
    return any(event.kind == "update_rejected" for event in events)


async def _expect_not_wanted(broker: Broker, settings: Settings) -> str:
    with pytest.raises(NotWanted) as caught:
        await _take_part(broker, settings)
    return str(caught.value)


async def test_who_is_in_no_pattern_or_has_too_little_trains_nothing(broker: Broker, federation: str) -> None:
    settings = _settings(federation, participation={"clients": "lab-*", "min_examples": 5})
    async with _federation(broker, settings) as running:
        assert "participation.clients" in await _expect_not_wanted(broker, settings)
        delta = torch.full((100,), 0.1)
        await running.publish(delta, "ward-7", num_examples=10)
        await running.publish(delta, "lab-1", num_examples=4)
        reasons = [entry["reason"] for entry in await running.quarantined(2)]
        assert reasons == ["not_wanted", "too_few_examples"]
        await running.publish(delta, "lab-1", num_examples=5)
        assert [item.client_id for item in (await running.version(1)).head.manifest] == ["lab-1"]


async def test_no_more_take_part_at_once_than_there_is_room_for(broker: Broker, federation: str) -> None:
    settings = _settings(federation, participation={"at_once": 1})
    async with _federation(broker, settings) as running:
        delta = torch.full((100,), 0.1)
        await running.publish(delta, "a")
        await running.version(1)
        await running.publish(delta, "b")
        (entry,) = await running.quarantined(1)
        assert entry["reason"] == "too_many_clients"
        await running.publish(delta, "a")
        assert [item.client_id for item in (await running.version(2)).head.manifest] == ["a"]


async def test_an_order_changes_how_a_client_works(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    settings, stop = _settings(federation), Shutdown()
    async with _federation(broker, settings) as running:
        wanted = ClientOrder(settings={"codec.name": "topk", "client.epochs": 2}, reason="slow link")
        async with asyncio.TaskGroup() as group:
            group.create_task(_take_part(broker, settings, stop))
            await running.version(1)
            await order(broker, running.topics, "ward-7", wanted)
            await running.until(lambda: "slow link" in caplog.text)
            count = 2
            while (codecs := await _codecs(running, count))[-1] != "topk":
                count += 1
            assert codecs[0] == "float32"
            await order(broker, running.topics, "ward-7", ClientOrder(settings={"client.state_dir": "/"}))
            await running.until(lambda: "nothing of it is done" in caplog.text)
            while (codecs := await _codecs(running, count))[-1] != "float32":
                count += 1
            stop.request()
    assert "the operator has set codec.name topk, client.epochs 2 for this client: slow link" in caplog.text


def test_an_embedded_client_that_is_not_wanted_hears_it_from_train() -> None:
    model = torch.nn.Linear(2, 1)
    batches = [(torch.zeros(4, 2), torch.zeros(4, 1))]
    settings = {"participation": {"clients": "lab-*"}, "client": {"id": "ward-7"}}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = torch.nn.functional.mse_loss
    with (
        FederatedLearning(model, batches, optimizer, loss=loss, settings=settings) as fl,
        pytest.raises(NotWanted, match="none of those who take part"),
    ):
        fl.train(0)

"""A federation for tests, tested: what it shows of a run, and of one that fails."""

import asyncio
from typing import Any

import pytest
import torch
from torch import nn

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.errors import ConfigError
from llmos_stream.testing import Call, FaultyBroker, quick_settings, running_federation, running_role, until
from tests.roles.aids import LAYOUT, delta_of, initial


def _pair(federation: str = "test") -> Any:
    return quick_settings(federation, aggregation={"buffer_size": 2})


async def test_updates_become_a_version_with_its_events(broker: Broker, federation: str) -> None:
    async with running_federation(initial(), _pair(federation), broker) as running:
        first = await running.publish(delta_of(1.0), "a", num_examples=30)
        await running.publish(delta_of(2.0), "b", num_examples=10)
        version, folded = await asyncio.gather(running.version(1), running.events("update_folded", 2))
        await running.send([b"rubbish"], "c")
        (refused,) = await running.quarantined()
        await running.publish(delta_of(1.0), "a")
        await running.publish(delta_of(1.0), "b", sequence=7, base_version=0)
        second = await running.version(2)
        found = await running.events_until(lambda events: "version_published" in events[-1].kind and len(events) > 6)
        (record,) = await running.read(running.topics.updates)
    assert torch.allclose(version.weights, delta_of(1.25))
    assert version.layout == LAYOUT
    assert [event.data["client_id"] for event in folded] == ["a", "b"]
    assert (refused["reason"], refused["partition"]) == ("malformed", 0)
    assert [(item.client_id, item.sequence, item.staleness) for item in second.head.manifest] == [
        ("a", 1, 0),  # on version 1, which was asked for
        ("b", 7, 1),
    ]
    assert [event.data["version"] for event in found if event.kind == "version_published"] == [0, 1, 2]
    assert record.offset == first


async def test_a_chain_of_deltas_is_decoded_and_kept(federation: str) -> None:
    settings = quick_settings(federation, versions={"full_every": 4})
    async with running_federation(initial(), settings) as running:
        for _ in range(5):
            await running.publish(delta_of(1.0), base_version=0)
        await running.version(5)
        weights = [(await running.version(number)).weights for number in range(6)]
    for number, found in enumerate(weights):
        torch.testing.assert_close(found, delta_of(float(number)), rtol=0.0, atol=0.2)


async def test_a_model_is_version_0_and_deltas_have_names() -> None:
    model = nn.Linear(2, 1)
    begun = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    async with running_federation(model) as running:
        await running.publish({name: torch.ones_like(tensor) for name, tensor in begun.items()})
        tensors = running.initial.layout.unflatten((await running.version(1)).weights)
    assert list(tensors) == ["weight", "bias"]
    for name, tensor in tensors.items():
        torch.testing.assert_close(tensor, begun[name] + 1)


async def test_one_that_is_killed_or_stopped_goes_on_from_its_log(broker: Broker, federation: str) -> None:
    settings = quick_settings(federation, stop={"max_versions": 3})
    async with running_federation(initial(), settings, broker) as running:
        await running.publish(delta_of(1.0))
        await running.version(1)
        await running.kill()
    async with running_federation(initial(), settings, broker) as running:
        await running.publish(delta_of(1.0), "b")
        await running.version(2)
        assert await running.stop() is None
    async with running_federation(initial(), settings, broker) as running:
        await running.publish(delta_of(1.0), "c")
        end = await running.task
        assert torch.equal((await running.version(3)).weights, delta_of(3.0))
    assert end is not None
    assert end.reason == "max_versions"


async def test_an_aggregator_that_fails_at_once_shows_why(federation: str) -> None:
    before = asyncio.all_tasks()
    settings = quick_settings(federation, wire={"pending_bytes": 1 << 20})
    with pytest.raises(ConfigError, match=r"wire\.pending_bytes"):
        async with running_federation(nn.Linear(1 << 10, 1 << 9), settings):
            pytest.fail("it runs")
    assert asyncio.all_tasks() == before


async def _commits_no_second_version(call: Call) -> Any:
    if call.operation == "send_all" and call.arguments["key"] == b"1":
        raise ArithmeticError("spoiled")
    return await call.proceed()


@pytest.mark.parametrize("wait", ["version", "events", "until", "nothing", "stop"])
async def test_an_aggregator_that_fails_later_shows_why(broker: Broker, federation: str, wait: str) -> None:
    before = asyncio.all_tasks()

    async def meet() -> None:
        faulty = FaultyBroker(broker, _commits_no_second_version)
        async with running_federation(initial(), quick_settings(federation), faulty) as running:
            await running.version(0)
            await running.publish(delta_of(1.0))
            match wait:
                case "version":
                    await running.version(1)
                case "events":
                    await running.events("version_published", 2)
                case "until":
                    await running.until(lambda: False)
                case "stop":
                    await until(running.task.done)
                    await running.stop()
                case _:
                    await until(running.task.done)

    with pytest.raises(ArithmeticError, match="spoiled"):
        await meet()
    if isinstance(broker, MemoryBroker):  # Kafka's client has tasks of its own
        assert asyncio.all_tasks() == before


async def test_the_tests_own_error_comes_first(federation: str) -> None:
    before = asyncio.all_tasks()

    async def fail() -> None:
        faulty = FaultyBroker(MemoryBroker(), _commits_no_second_version)
        async with running_federation(initial(), quick_settings(federation), faulty) as running:
            await running.publish(delta_of(1.0))
            await until(running.task.done)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    assert asyncio.all_tasks() == before


async def test_what_does_not_come_in_time_is_named(federation: str) -> None:
    async with running_federation(initial(), quick_settings(federation)) as running:
        await running.version(0)
        await running.events("version_published")
        running._patience_seconds = 0.2
        for wait, message in (
            (running.version(7), r"waited 0.2 s for version 7: the log has \[0\]"),
            (running.events("update_folded"), r"waited 0.2 s for events: there are .*1 version_published"),
            (running.quarantined(2), r"waited 0.2 s for 2 records of .*quarantine: it has 0"),
            (running.until(lambda: False), "waited 0.2 s for a condition that did not come to hold"),
            (until(lambda: False, 0.05), "the condition did not hold within 0.05 s"),
        ):
            with pytest.raises(TimeoutError, match=message):
                await wait


async def test_until_awaits_what_must_be_awaited() -> None:
    answers = [False, False, True]

    async def ask() -> bool:
        return answers.pop(0)

    await until(ask)
    assert answers == []


async def test_a_role_that_does_not_stop_is_cancelled() -> None:
    before = asyncio.all_tasks()

    async def meet() -> None:
        async with running_role(lambda *_: asyncio.Event().wait(), 0.05):
            pass

    with pytest.raises(TimeoutError, match=r"did not stop within 0\.05 s"):
        await meet()
    assert asyncio.all_tasks() == before

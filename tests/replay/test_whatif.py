"""What if: nothing changed gives the same bytes, a poisoner left out gives the accuracy back, other rules run."""

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, NotFound
from llmos_stream.replay.index import Missing
from llmos_stream.replay.whatif import Change, WhatIf, WhatIfResult
from llmos_stream.training import load_task
from llmos_stream.training.model_evaluator import ModelEvaluator
from tests.replay.aids import FLIPPER, RULES, replay_log, running_from, write_poisoned, write_random
from tests.roles.aids import delta_of, initial, settings_for, update


def _judge(settings: Settings) -> ModelEvaluator:
    return ModelEvaluator(load_task(settings.task, settings.client), settings.task, settings.evaluator.batch_size)


async def _told(broker: Broker, settings: Settings, change: Change, first: int | None = None) -> WhatIfResult:
    async with replay_log(broker, settings) as log:
        numbers = log.index.numbers
        return await WhatIf(log, change).run(numbers if first is None else range(first, numbers.stop))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("first", [None, 4])
@pytest.mark.parametrize("full_every", [1, 5])
async def test_with_nothing_changed_every_byte_is_the_same(
    federation: str, rule: str, first: int | None, full_every: int
) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, rule, versions={"full_every": full_every})
    result = await _told(broker, settings, Change(settings={"staleness": {}}), first)
    assert result.digest == result.original_digest
    assert result.difference is not None
    assert result.difference.max_abs == 0.0
    assert (result.first, result.last, result.final.head.number) == (0 if first is None else 3, 6, 6)
    assert not result.refused
    assert not result.moments_reset


async def test_a_poisoner_left_out_gives_the_accuracy_back(broker: Broker, federation: str) -> None:
    settings = await write_poisoned(broker, federation)
    async with replay_log(broker, settings) as log:
        numbers, judge = log.index.numbers, _judge(settings)
        without = await WhatIf(log, Change(frozenset({FLIPPER})), judge=judge, every=2).run(numbers)
        assert (without.folded, without.removed) == (12, 6)
        assert [point.version for point in without.points] == [2, 4, 6]
        last = without.points[-1]
        assert last.original.metrics["accuracy"] < 0.5
        assert last.changed.metrics["accuracy"] > 0.9
        assert without.digest != without.original_digest
        for change in (
            {"staleness": {"kind": "constant"}},
            {"aggregation": {"strategy": "fedasync"}, "staleness": {"kind": "hinge"}},
            {"server_optimizer": {"name": "adam", "lr": 0.05}},
        ):
            other = await WhatIf(log, Change(settings=change), judge=judge).run(numbers)
            assert other.folded == 18
            assert 0.0 <= other.points[0].changed.metrics["accuracy"] <= 1.0
            assert other.points[0].original == pytest.approx(other.points[0].original)
            assert (other.digest == other.original_digest) == ("staleness" in change and len(change) == 1)


async def test_what_is_left_of_a_version_is_folded_as_if_the_removed_had_never_been(federation: str) -> None:
    """By hand: constant staleness and plain FedAvg, client b left out."""
    broker = MemoryBroker()
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    async with running_from(broker, settings, initial()) as running:
        for number, (one, other) in enumerate([("a", "b"), ("b", "b"), ("b", "a")]):
            for place, client in enumerate((one, other)):
                value = {"a": 1.0, "b": 100.0}[client]
                sequence = 2 * number + place
                records = update(delta_of(value), client_id=client, sequence=sequence, base_version=number)
                await running.send(records, client)
            await running.version(number + 1)
    result = await _told(broker, settings, Change(frozenset({"b"})))
    assert torch.equal(result.final.weights, delta_of(2.0))
    assert (result.folded, result.removed) == (2, 4)
    assert result.final.head.number == 2  # the second version's contributions were all b's


async def test_another_buffer_is_filled_by_count(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd")
    larger = await _told(broker, settings, Change(settings={"aggregation": {"buffer_size": 5}}))
    assert (larger.folded, larger.final.head.number) == (12, 3)  # 5 and 5 and what is left at the end
    smaller = await _told(broker, settings, Change(settings={"aggregation": {"buffer_size": 1}}))
    assert (smaller.folded, smaller.final.head.number) == (12, 12)


async def test_what_the_changed_rule_refuses_is_counted(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd")
    result = await _told(broker, settings, Change(settings={"staleness": {"maximum": 1}}))
    stale = {"too_stale": 12 - result.folded}
    assert dict(result.refused) == stale
    assert result.folded < 12


async def test_fedasync_told_as_fedbuff(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "fedasync")
    result = await _told(broker, settings, Change(settings={"aggregation": {"strategy": "fedbuff", "buffer_size": 3}}))
    assert (result.folded, result.final.head.number) == (6, 2)


async def test_a_client_that_is_not_there_is_named(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd")
    with pytest.raises(NotFound, match="no contribution of nobody in these versions"):
        await _told(broker, settings, Change(frozenset({"nobody"})))
    with pytest.raises(ConfigError, match="the changed settings make no rule"):
        await _told(broker, settings, Change(settings={"staleness": {"a": -1.0}}))


async def test_it_begins_where_the_log_allows_it(federation: str) -> None:
    broker = MemoryBroker(partition_bytes=1 << 14)
    settings = await write_random(broker, federation, "sgd")
    topic = f"{federation}.updates"
    async with broker.producer() as producer, broker.reader([topic], start="earliest") as reader:
        while await reader.position(reader.partitions[0]) == 0:
            await producer.send(topic, bytes(256), key=b"x", partition=0)
            await reader.seek_to_beginning()
    result = await _told(broker, settings, Change(settings={"staleness": {"kind": "constant"}}))
    assert 0 < result.first < 6
    assert result.deleted is not None
    assert "has been deleted by retention" in result.deleted
    async with replay_log(broker, settings) as log:
        with pytest.raises(Missing, match="where the log begins"):
            await WhatIf(log, Change(settings={"staleness": {}})).run(range(1))

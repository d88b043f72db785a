"""Versions rebuilt from the log on both brokers: the same bytes, or exactly what is missing."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from llmos_stream.broker import Broker, MemoryBroker, connect
from llmos_stream.core.robust import Krum
from llmos_stream.replay.index import Index
from llmos_stream.replay.rebuild import Rebuilder, RebuildOutcome
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.replay.whatif import Change, WhatIf
from llmos_stream.types import CodecId, CodecSpec
from tests.conftest import KafkaNode
from tests.replay.aids import (
    ANOTHER_BUILD,
    ROBUST,
    RULES,
    computed_elsewhere,
    outcomes,
    replay_log,
    topics_of,
    verdicts_of,
    write_random,
)
from tests.roles.aids import FLOAT32


@pytest.mark.parametrize("full_every", [1, 4])
@pytest.mark.parametrize("rule", RULES)
async def test_every_version_is_rebuilt_bit_for_bit(
    broker: Broker, federation: str, rule: str, full_every: int
) -> None:
    """Also those in the middle of a chain of deltas."""
    own: dict[str, Any] = {"topics": {"updates_partitions": 2}, "versions": {"full_every": full_every}}
    settings = await write_random(broker, federation, rule, **own)
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6
        assert all(verdict.rebuilt_digest == verdict.published_digest for verdict in verdicts)
        assert len({verdict.rebuilt_digest for verdict in verdicts}) == 7
        staleness = {item.staleness for entry in log.index.versions.values() for item in entry.head.manifest}
        assert staleness == {0, 1, 2}
        assert outcomes(await verdicts_of(log, range(4, 6))) == [RebuildOutcome.MATCH] * 2
        assert any(map(log.index.moments, log.index.snapshots)) == (rule in ("momentum", "nesterov", "adam"))
        residuals = {number for number in log.index.versions if log.index.residuals(number)}
        assert residuals == ({1, 2, 3, 5, 6} if full_every == 4 else set())


async def test_a_chain_of_sparse_deltas_is_rebuilt_bit_for_bit(federation: str) -> None:
    """What they leave out is in the snapshots, in a codec of its own."""
    broker = MemoryBroker()
    versions = {"full_every": 4, "codec": "topk2", "chunk": 64, "keep": 4}
    settings = await write_random(broker, federation, "nesterov", versions=versions)
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6
        codecs = [log.index.versions[number].head.codec.id for number in range(7)]
        assert [codec == CodecId.TOPK2 for codec in codecs] == [number % 4 > 0 for number in range(7)]
        told = await WhatIf(log, Change(settings={"server_optimizer": {"epsilon": 0.5}})).run(log.index.numbers)
        assert told.digest == told.original_digest


@pytest.mark.parametrize(
    "codec", [FLOAT32, CodecSpec(CodecId.INT8, {"block": 32, "stochastic": 0})], ids=["f32", "int8"]
)
@pytest.mark.parametrize("rule", ROBUST)
async def test_a_rule_that_holds_its_updates_is_rebuilt_bit_for_bit(
    federation: str, rule: str, codec: CodecSpec
) -> None:
    broker = MemoryBroker()
    # No memory to speak of: float32 is held in a file.
    settings = await write_random(broker, federation, rule, codec=codec, wire={"memory_bytes": 1})
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6
        weights = [item.weight for entry in log.index.versions.values() for item in entry.head.manifest]
        assert (0.0 in weights) == (rule == "krum")
        told = await WhatIf(log, Change(settings={"server_optimizer": {"epsilon": 0.5}})).run(log.index.numbers)
        assert told.digest == told.original_digest


async def test_the_choice_that_is_recorded_stands(federation: str) -> None:
    """Another machine may round the distances differently, and choose another one."""
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "krum", 1)
    async with replay_log(broker, settings) as log:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Krum, "judge", lambda self, held: [replace(item, weight=0.0) for item in held.manifest])
            assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL, RebuildOutcome.MATCH]


async def test_the_first_deltas_clip_is_taken_from_the_manifest(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd")
    async with replay_log(broker, settings) as log:
        clips = {item.clip for entry in log.index.versions.values() for item in entry.head.manifest}
    assert max(clips) < 1.0


async def test_moments_are_carried_from_further_back_where_there_is_no_snapshot(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "adam")
    async with replay_log(broker, settings) as log:
        log.index = Index(log.index.versions, {})
        assert outcomes(await verdicts_of(log, range(5, 7))) == [RebuildOutcome.MATCH] * 2
        kept = {number: entry for number, entry in log.index.versions.items() if number >= 3}
        log.index = Index(kept, {})
        verdicts = await verdicts_of(log)
    assert outcomes(verdicts) == [RebuildOutcome.GONE] * 4
    assert verdicts[0].detail == "version 2 has been deleted by retention (the oldest kept is 3)"
    assert verdicts[1].detail == "the moments of the server optimiser at version 3 are not in the log"


async def test_what_a_chain_owes_is_carried_from_further_back_where_it_is_not_kept(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd", versions={"full_every": 4})
    async with replay_log(broker, settings) as log:
        log.index = replace(log.index, snapshots={number: log.index.moments(number) for number in log.index.snapshots})
        assert outcomes(await verdicts_of(log, range(6, 7))) == [RebuildOutcome.MATCH]
        kept = {number: entry for number, entry in log.index.versions.items() if number in (0, 2, 3)}
        log.index = replace(log.index, versions=kept)
        verdicts = await verdicts_of(log, range(3, 4))
    assert outcomes(verdicts) == [RebuildOutcome.GONE]


async def test_a_version_computed_elsewhere_is_said_to_differ_and_by_how_much(broker: Broker, federation: str) -> None:
    with computed_elsewhere(6, shift=0.5):
        settings = await write_random(broker, federation, "sgd")
    async with replay_log(broker, settings) as log:
        (last,) = await verdicts_of(log, range(6, 7))
    assert last.outcome is RebuildOutcome.DIFFERS
    assert last.build == ANOTHER_BUILD
    assert last.rebuilt_digest != last.published_digest
    assert last.difference is not None
    assert last.difference.max_abs == pytest.approx(0.5, rel=1e-5)
    assert 0 < last.difference.relative_l2 < 1


async def test_updates_deleted_by_retention_are_named(federation: str) -> None:
    broker = MemoryBroker(partition_bytes=1 << 14)
    settings = await write_random(broker, federation, "sgd")
    topic = topics_of(settings).updates
    async with broker.producer() as producer:
        while True:
            async with broker.reader([topic], start="earliest") as reader:
                oldest = await reader.position(reader.partitions[0])
            if oldest:
                break
            await producer.send(topic, bytes(256), key=b"x", partition=0)
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        first = log.index.versions[1].head.manifest[0]
    assert outcomes(verdicts)[:2] == [RebuildOutcome.INITIAL, RebuildOutcome.GONE]
    assert outcomes(verdicts)[-1] == RebuildOutcome.MATCH
    assert verdicts[1].detail == (
        f"update a/0 at {topic}[0] offset {first.offset} has been deleted by retention (the oldest kept is {oldest})"
    )


@pytest.mark.kafka
async def test_updates_deleted_on_a_real_kafka_are_named(kafka: KafkaNode, federation: str) -> None:
    async with connect(kafka.settings()) as broker:
        settings = await write_random(broker, federation, "sgd")
        topic = topics_of(settings).updates
        async with replay_log(broker, settings) as log:
            cut = log.index.versions[3].head.manifest[0].offset
            await _delete(kafka, topic, cut)
            verdicts = await verdicts_of(log)
    assert (
        outcomes(verdicts)
        == [RebuildOutcome.INITIAL, RebuildOutcome.GONE, RebuildOutcome.GONE] + [RebuildOutcome.MATCH] * 4
    )
    assert verdicts[2].detail.endswith(f"has been deleted by retention (the oldest kept is {cut})")


async def _delete(kafka: KafkaNode, topic: str, before: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TheirPartition(topic, 0): RecordsToDelete(before)})
    await admin.close()


async def test_the_rebuilt_weights_are_at_hand(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd")
    async with replay_log(broker, settings) as log:
        rebuilding = Rebuilder(log, range(3, 4))
        assert [verdict.version async for verdict in rebuilding.verdicts()] == [3]
        published = await log.weights(3)
    assert rebuilding.last is not None
    assert torch.equal(rebuilding.last.weights, published)


async def test_an_empty_federation_has_nothing_to_rebuild(federation: str) -> None:
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "sgd", count=0)
    async with replay_log(broker, settings) as log:
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL]
        assert await verdicts_of(log, range(0)) == []


async def test_heads_of_large_versions_are_found_without_reading_them(
    federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every payload of more than a chunk is passed over by a seek here; nothing is lost by that."""
    broker = MemoryBroker()
    settings = await write_random(broker, federation, "adam", wire={"chunk_bytes": 1024})
    monkeypatch.setattr("llmos_stream.log.scan._WORTH_A_SEEK", 0)
    async with replay_log(broker, settings) as log:
        assert list(log.index.versions) == list(range(7))
        assert [number for number in sorted(log.index.snapshots) if log.index.moments(number)] == list(range(7))
        assert outcomes(await verdicts_of(log)) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * 6
    assert isinstance(log, ReplayLog)

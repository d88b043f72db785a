"""Who leaves out Kafka's checksums of what it reads: only who compares each payload with the digest in its head."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from llmos_stream.broker import MemoryBroker, Reader, Topics
from llmos_stream.dashboard.older import OlderVersions
from llmos_stream.log.index import version_index
from llmos_stream.registry import run_archiver
from llmos_stream.roles.aggregator import initial_of
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import evaluate_once, run_evaluator
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import FaultyBroker, quick_settings, running_federation
from llmos_stream.training import load_task
from tests.federation import federation_of
from tests.registry.aids import store_of
from tests.replay.aids import replay_log, verdicts_of


class Noting(FaultyBroker):
    """Notes which topics are read, and whether checksums are looked at."""

    def __init__(self, inner: MemoryBroker) -> None:
        super().__init__(inner)
        self.checked: set[str] = set()
        self.unchecked: set[str] = set()

    def reader(self, topics: Sequence[str], *, check_crcs: bool = True, **options: Any) -> Reader:
        (self.checked if check_crcs else self.unchecked).update(topic.rpartition(".")[2] for topic in topics)
        return super().reader(topics, check_crcs=check_crcs, **options)


async def test_only_payloads_with_a_digest_are_read_without_checksums(federation: str, tmp_path: Path) -> None:
    log = MemoryBroker()
    settings = quick_settings(
        federation,
        task={"entry": "blobs", "shards": 1},
        client={"id": "c"},
        server_optimizer={"name": "adam"},
        stop={"max_versions": 3},
        registry={"url": f"file://{tmp_path}", "every": 1},
    )
    task = load_task(settings.task, settings.client)
    seen = {name: Noting(log) for name in ("aggregator", "client", "evaluator", "evaluated", "archiver", "replay")}
    async with Offload(2) as offload:
        async with running_federation(initial_of(task, settings), settings, log) as running:
            await running.publish(torch.ones(running.initial.layout.numel))
            await running.version(1)
        async with running_federation(initial_of(task, settings), settings, seen["aggregator"]) as running:
            await run_client(seen["client"], settings, task, ClientState("c", None), offload, Shutdown())
            await running.task
        await run_evaluator(seen["evaluator"], settings, task, offload, Shutdown())
        await evaluate_once(seen["evaluated"], settings, task, offload, Shutdown())
        assert await run_archiver(seen["archiver"], settings, store_of(settings), offload, Shutdown())
        async with replay_log(seen["replay"], settings) as replayed:
            assert len(await verdicts_of(replayed)) == 4
    assert {name: (noted.checked, noted.unchecked) for name, noted in seen.items()} == {
        # Of models it reads a head, for the layout, and payloads.
        "aggregator": ({"control", "evaluations", "models"}, {"updates", "models", "snapshots"}),
        "client": ({"control", "quarantine"}, {"models"}),
        "evaluator": ({"control", "models"}, set()),
        "evaluated": ({"control", "models"}, set()),
        "archiver": ({"control", "models"}, {"models"}),
        "replay": ({"models", "snapshots"}, {"models", "snapshots", "updates"}),
    }


async def test_heads_that_are_looked_up_are_read_with_checksums(federation: str) -> None:
    settings = quick_settings(federation)
    async with running_federation(torch.nn.Linear(2, 1), settings, noting := Noting(MemoryBroker())) as running:
        await running.version(0)
        async with version_index(noting, running.topics.models) as index:
            assert await index.newest() is not None
        await OlderVersions(lambda: noting, federation).get(0)
        async with federation_of(noting, settings, running.federation.offload).reader(Topics(federation).models):
            pass
    assert noting.unchecked == {"updates"}

"""What is half received may lie in a file: nothing else about an aggregator changes."""

from itertools import zip_longest
from pathlib import Path

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.errors import ConfigError
from tests.roles.aids import NUMEL, aggregator, settings_for, update


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def test_interleaved_updates_go_through_the_file(broker: Broker, federation: str, tmp_path: Path) -> None:
    wire = {"memory_bytes": 0, "spool_dir": tmp_path}
    settings = settings_for(federation, wire=wire, aggregation={"buffer_size": 3})
    deltas = [torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    wrong = update(deltas[0], 32, client_id="wrong", payload_digest=b"\2" * 32)
    good = [update(delta, 32, client_id=f"c{number}") for number, delta in enumerate(deltas)]
    assert min(map(len, good)) > 3
    async with aggregator(broker, settings) as running:
        for in_turn in zip_longest(wrong, *good):
            for client, value in zip(("wrong", "c0", "c1", "c2"), in_turn, strict=True):
                if value is not None:
                    await running.send([value], client)
        version = await running.version(1)
        (entry,) = await running.quarantined(1)
    weights = version.weights
    torch.testing.assert_close(weights, sum(deltas, torch.zeros(NUMEL)) / 3)
    assert sorted(item.client_id for item in version.head.manifest) == ["c0", "c1", "c2"]
    assert entry["reason"] == "wrong_digest"
    assert _files(tmp_path) == []


async def test_a_folder_that_cannot_be_written_is_refused_at_the_start(federation: str, tmp_path: Path) -> None:
    async def run() -> None:
        settings = settings_for(federation, wire={"memory_bytes": 0, "spool_dir": tmp_path / "missing"})
        async with aggregator(MemoryBroker(), settings) as running:
            await running.send(update(torch.ones(NUMEL)))
            await running.version(1)

    with pytest.raises(ConfigError, match=r"wire\.spool_dir: .*No such file or directory"):
        await run()

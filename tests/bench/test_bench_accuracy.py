"""The benchmarks of accuracy and of the event loop on something tiny: they run, and their figures are what they say."""

import argparse
import asyncio
import itertools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.bench import bench_accuracy, bench_codec, bench_loop
from tests.bench.bench_accuracy import CHAINS, UPDATES, Trial, row_of
from tests.bench.children import BenchmarkFailed
from tests.bench.loop_child import TICK_SECONDS, Probe
from tests.conftest import KafkaNode

DUMP = """\
a line of the log
Timeout (0:00:00.030000)!
Thread 0x0000000000000001 (most recent call first):
  File "/x/concurrent/futures/thread.py", line 81 in _worker

Thread 0x0000000000000002 (most recent call first):
  File "/x/codec/sections.py", line 90 in pack
  File "/x/codec/payload.py", line 70 in _sections

Thread 0x0000000000000003 (most recent call first):
  File "/x/asyncio/streams.py", line 500 in feed_data
  File "/x/asyncio/streams.py", line 284 in data_received
"""


def _run(module: ModuleType, folder: Path, *arguments: str) -> Any:
    """What the benchmark writes when it is run with `arguments`."""
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    module.run(parser.parse_args([*arguments, "--output", str(folder)]))
    return json.loads((folder / f"{module.__name__.rpartition('_')[2]}.json").read_text())


def _trial(seed: int, update_bytes: float, *accuracies: float) -> Trial:
    curve = {5 * index: accuracy for index, accuracy in enumerate(accuracies)}
    return Trial(seed, curve, 8, update_bytes, 1000, 300.0, 1.0)


@pytest.mark.full
def test_codecs_are_measured_beside_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: UPDATES[name] for name in ("float32", "int8", "top 1 %")}
    monkeypatch.setattr(bench_accuracy, "UPDATES", few)
    found = _run(bench_accuracy, tmp_path, "--seeds", "1", "--versions", "7", "--entry", "blobs")
    rows = {row["name"]: row for row in found["results"]}
    assert list(rows) == [*few, *CHAINS]
    for row in rows.values():
        (trial,) = row["trials"]
        assert list(trial["accuracies"]) == ["0", "5", "7"]
        assert trial["updates"] > 7
        assert 0 < row["accuracy"] <= 100
        assert row["points"] == pytest.approx(row["accuracy"] - rows["float32"]["accuracy"])
    assert rows["float32"]["wire"] == 100
    sizes = [rows[name]["raw"] for name in few]
    assert sizes == sorted(sizes, reverse=True)


def test_a_run_that_ends_too_early_is_no_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_accuracy, "_SECONDS", 1e-3)
    with pytest.raises(BenchmarkFailed, match=r"seed 3: ended at version \d+, 0 refused"):
        bench_accuracy.run_trial("blobs", {}, {}, last=100_000, seed=3)


def test_a_row_compares_the_runs_of_the_same_seed() -> None:
    float32 = [_trial(0, 600.0, 0.1, 0.90, 0.97), _trial(1, 600.0, 0.1, 0.92, 0.99)]
    lossy = [_trial(0, 60.0, 0.1, 0.60, 0.96), _trial(1, 60.0, 0.1, 0.98, 0.98)]
    row = row_of("lossy", lossy, float32)
    assert row.accuracy == pytest.approx(100 * (0.1 + 0.60 + 0.96 + 0.1 + 0.98 + 0.98) / 6)
    assert row.points == pytest.approx(100 * (-0.31 / 3 + 0.05 / 3) / 2)
    assert row.wire == pytest.approx(10.0)
    assert row.raw == pytest.approx(6.0)
    # Float32 ends at a mean of 66.33 %: version 5 is the first above.
    assert row.reached == 5
    assert row_of("lost", [_trial(0, 60.0, 0.1, 0.1)], float32[:1]).reached is None


@pytest.mark.full
def test_deltas_of_a_first_and_of_later_rounds_are_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = {name: bench_codec.CODECS[name] for name in ("float32", "int4", "top 1 %, int8")}
    monkeypatch.setattr(bench_codec, "CODECS", few)
    found = _run(bench_codec, tmp_path, "--width", "8", "--steps", "20")
    for row in found["results"]:
        assert len(row["rounds_percent"]) == bench_codec.ROUNDS
        assert row["ratio"] == pytest.approx(100 / row["rounds_percent"][-1])
        if row["codec"].startswith(("int4", "top")):
            assert 0 < row["feedback_error"] < row["sum_error"] < 1


def test_rounds_shorter_than_the_few_steps_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkFailed, match="--steps: 5 is less than 20"):
        _run(bench_codec, tmp_path, "--steps", "5")


@pytest.mark.full
@pytest.mark.kafka
def test_the_event_loop_is_watched(kafka: KafkaNode, tmp_path: Path) -> None:
    few = ["--numel", "1000", "--updates", "2", "--codec", "int8", "--idle", "0.1", "--limit", "60"]
    found = _run(bench_loop, tmp_path, *few, "--bootstrap", kafka.bootstrap_servers)
    assert [row["phase"] for row in found["results"]] == ["idle, before int8", "int8, busy"]
    for row in found["results"]:
        assert row["ticks"] > 0
        assert 0 <= row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]


async def test_ticks_that_a_busy_loop_misses_count_as_late_as_they_are() -> None:
    loop = asyncio.get_running_loop()
    probe = Probe()
    begun = loop.time()
    while loop.time() < begun + 20 * TICK_SECONDS:
        pass
    ticked = asyncio.Event()
    loop.call_at(begun + 20 * TICK_SECONDS, ticked.set)  # due after the tick that was missed first
    await ticked.wait()
    late = probe.take()
    probe.stop()
    assert len(late) >= 20
    assert late[1] >= 18 * TICK_SECONDS
    for earlier, later in itertools.pairwise(late[1:20]):
        assert earlier - later == pytest.approx(TICK_SECONDS)


def test_stacks_name_the_loop_first_and_then_who_works() -> None:
    (place,) = bench_loop.places(DUMP + DUMP).items()
    assert place == (
        "asyncio/streams.py:500 feed_data < asyncio/streams.py:284 data_received | codec/sections.py:90 pack",
        2,
    )
    assert not bench_loop.places("a line of the log\n")

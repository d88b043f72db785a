"""The benchmarks on something tiny: they run, they count, and they notice when the counts are wrong."""

import argparse
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from llmos_stream.config import load
from llmos_stream.roles.client import Client
from llmos_stream.testing.language_models import write_tiny_model
from llmos_stream.types import CodecId, CodecSpec, Contribution, VersionHead, VersionKind
from tests.bench.__main__ import NAMES, main
from tests.bench.bench_codec import CODECS, OPTIMIZERS
from tests.bench.bench_flower import beside
from tests.bench.children import BenchmarkFailed, Child, NotHere
from tests.bench.flower_host import Measured
from tests.bench.pipe_cells import ONE_WAY, Codec, number, usual_cells
from tests.bench.pipe_child import Publisher
from tests.bench.pipe_federation import check_counts
from tests.bench.pipe_rows import percentile
from tests.bench.usage import available_bytes
from tests.conftest import KafkaNode

ALWAYS = {
    *("updates_per_s", "update_mb", "updates_mb_s", "reference_mb_s", "float32_mb_s", "float32_reference_mb_s"),
    *("log_mb_s", "version_mb", "latency_p50_s", "client_cpu_s", "aggregator_cpu_s", "aggregator_loop_cpu_s"),
}
FETCHED = {"fetch_p50_s", "fetch_cpu_s"}
COUNTED = {"lost": 0, "repeated": 0, "unknown": 0}
SENT = [("a", 0), ("b", 0), ("a", 1), ("b", 1)]


@pytest.fixture(autouse=True)
def _torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def _versions(*manifests: list[tuple[str, int]]) -> list[VersionHead]:
    """A chain of versions from version 0, which folds nothing."""
    return [
        VersionHead(
            number=number,
            parent=number - 1 if number else None,
            kind=VersionKind.FULL,
            layout_digest=b"",
            codec=CodecSpec(CodecId.FLOAT32),
            payload_size=0,
            payload_digest=b"",
            weights_digest=b"",
            time_ms=0,
            manifest=tuple(Contribution(*identity, 0, 0, 1, 0, 1.0, 1.0, b"") for identity in manifest),
        )
        for number, manifest in enumerate([[], *manifests])
    ]


class _SlowClient:
    """Has a version more each time it is asked, and sometimes none."""

    def __init__(self, *answers: int | None) -> None:
        self._answers = iter(answers)

    async def newest(self, after: int | None, seconds: float) -> SimpleNamespace | None:
        number = next(self._answers)
        return None if number is None else SimpleNamespace(head=SimpleNamespace(number=number))


def _publisher(*answers: int | None) -> Publisher:
    return Publisher(cast("Client", _SlowClient(*answers)), load({}), torch.zeros(1))


async def test_a_client_catches_up_however_long_it_takes() -> None:
    """One that begins a round on an older version than the others gets out of step, and they wait for ever."""
    publisher = _publisher(0, 1, 2, 5, 6)
    for version, holds in ((0, 0), (3, 5), (4, 5)):
        await publisher.answer({"do": "catch_up", "version": version})
        assert publisher.base is not None
        assert publisher.base.head.number == holds
    with pytest.raises(BenchmarkFailed, match="version 2 did not come within 300 s; it has 1"):
        await _publisher(1, None).answer({"do": "catch_up", "version": 2})


def test_a_containers_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, used = tmp_path / "limit", tmp_path / "used"
    monkeypatch.setattr("tests.bench.usage._LIMITS", [(limit, used), (tmp_path / "none", tmp_path / "none")])
    used.write_text("7000\n")
    for text, free in (("9000\n", 2000), ("6000\n", 0)):
        limit.write_text(text)
        assert available_bytes() == free
    limit.write_text("max\n")
    assert available_bytes() > 1 << 20


@pytest.mark.full
@pytest.mark.kafka
def test_the_pipe_is_measured_and_every_update_counts_once(kafka: KafkaNode, tmp_path: Path) -> None:
    sizes = ["--numel", "1e3", "--clients", "2", "--updates", "4", "--limit", "60"]
    where = ["--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]
    assert main(["pipe", "--codec", "topk:0.01", *sizes, *where]) == 0
    found = json.loads((tmp_path / "pipe.json").read_text())
    # Two updates to warm up, then four in each of two phases; two to a version, and version 0.
    assert found["counts"] == [
        {"cell": "1000 top 1 %, 2 clients", "sent": 10, "folded": 10, "versions": 6, **COUNTED},
    ]
    assert [(row["codec"], row["clients"], row["phase"], row["updates"]) for row in found["results"]] == [
        ("top 1 %", 2, "one way", 4),
        ("top 1 %", 2, "round trip", 4),
    ]
    for row in found["results"]:
        for name in ALWAYS | (FETCHED if row["phase"] == "round trip" else set()):
            assert row[name] > 0, name
        assert row["ratio"] == pytest.approx(row["updates_mb_s"] / row["reference_mb_s"])
        assert row["float32_ratio"] == pytest.approx(row["float32_mb_s"] / row["float32_reference_mb_s"])
        assert row["latency_p50_s"] <= row["latency_p99_s"]
        assert row["aggregator_peak_models"] == pytest.approx(row["aggregator_peak_mib"] * 2**20 / 4000)
        assert row["aggregator_loop_cpu_s"] < row["aggregator_cpu_s"]


@pytest.mark.full
@pytest.mark.kafka
def test_one_big_delta_is_measured(kafka: KafkaNode, tmp_path: Path) -> None:
    where = ["--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]
    assert main(["big", "--numel", "300_000", "--limit", "60", *where]) == 0
    found = json.loads((tmp_path / "big.json").read_text())
    assert found["counts"] == {"sent": 1, "folded": 1, "versions": 2, **COUNTED}
    published, applied, fetched, all_of_it = found["steps"]
    assert published["seconds"] < applied["seconds"] < all_of_it["seconds"]
    assert published["mb"] == applied["mb"] > fetched["mb"] > 0  # the version is broadcast as a quantised delta
    assert [peak["process"] for peak in found["peaks"]] == ["aggregator", "client"]
    assert all(peak["peak_mib"] > 0 for peak in found["peaks"])


@pytest.mark.full
def test_memory_is_measured_and_told_who_held_it(tmp_path: Path) -> None:
    few = ["--width", "64", "--layers", "1", "--epochs", "2", "--only", "int8, the default"]
    assert main(["memory", *few, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "memory.json").read_text())
    [row] = found["results"]
    assert row["numel"] == found["plain"]["numel"] > 3_000_000
    models = 4 * row["numel"] / (1 << 20)
    assert row["above_plain_models"] == pytest.approx((row["peak_mib"] - found["plain"]["peak_mib"]) / models)
    assert any("Chain._weights" in name for name in row["ledger"])


@pytest.mark.full
@pytest.mark.kafka
def test_recovery_is_measured(kafka: KafkaNode, tmp_path: Path) -> None:
    few = ["--signals", "SIGTERM", "--failovers", "1", "--history", "2", "3", "--numel", "100"]
    assert main(["recovery", *few, "--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "recovery.json").read_text())
    assert [row["ended by"] for row in found["failover"]] == ["SIGTERM"]
    assert [row["versions"] for row in found["recovery"]] == [2, 3]
    for row in [*found["failover"], *found["recovery"]]:
        assert row["ratio"] == pytest.approx(row["seconds"] / row["reference_seconds"])


@pytest.mark.full
@pytest.mark.kafka
def test_predictions_are_measured_and_every_answer_is_checked(kafka: KafkaNode, tmp_path: Path) -> None:
    few = ["--requests", "400", "--versions", "3", "--connections", "4", "--limit", "500"]
    assert main(["serve", *few, "--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "serve.json").read_text())
    still, moving = found["results"]
    for row in (still, moving):
        assert (row["predictions"], row["errors"], row["wrong"]) == (400, 0, 0)
        assert 0 < row["p50_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert (still["versions"], moving["versions"]) == (1, 4)
    assert found["p99_ratio"] == pytest.approx(moving["p99_ms"] / still["p99_ms"])


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.timeout(600)
def test_texts_are_measured_beside_transformers_and_every_one_is_checked(kafka: KafkaNode, tmp_path: Path) -> None:
    write_tiny_model(tmp_path / "model")
    few = ["--requests", "40", "--versions", "2", "--connections", "4", "--tokens", "8", "--alone", "4"]
    model = ["--task", "llm", "--model", str(tmp_path / "model"), "--limit", "120"]
    where = ["--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]
    assert main(["serve", *few, *model, *where]) == 0
    found = json.loads((tmp_path / "serve-llm.json").read_text())
    alone, still, moving = found["results"]
    assert [row["answers"] for row in (alone, still, moving)] == [4, 4, 40]
    assert [row["versions"] for row in (alone, still)] == [1, 1]
    for row in (alone, still, moving):
        assert (row["dropped"], row["mixed"]) == (0, 0)
        assert row["ratio"] == pytest.approx(row["tokens_per_second"] / row["generate_per_second"])
    assert len(found["swap_ms"]) == moving["versions"] - 1 <= 2  # a quick machine has asked all before they are there
    assert len(found["idle_ms"]) == 3
    assert min(found["swap_ms"] + found["idle_ms"]) > 0


@pytest.mark.kafka
def test_looking_versions_up_takes_a_record_a_version(kafka: KafkaNode, tmp_path: Path) -> None:
    few = ["--versions", "12", "--megabytes", "4", "--limit", "60"]
    assert main(["index", *few, "--bootstrap", kafka.bootstrap_servers, "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "index.json").read_text())
    listed, *single, reference = found["rows"]
    assert [row["answer"] for row in (listed, *single, reference)] == [12, 1, 1, 0, 1, 12]
    record = 960 * 1024
    # One more: the last record of the newest version shows that nothing was passed over.
    assert (listed["records"], reference["records"]) == (13, 12 * 5)
    assert listed["record_bytes"] < listed["wire_bytes"] < 15 * record
    assert max(row["wire_bytes"] for row in single) < 20 * record


@pytest.mark.full
def test_codecs_are_measured(tmp_path: Path) -> None:
    assert main(["codec", "--width", "16", "--output", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "codec.json").read_text())["results"]
    assert [(row["optimizer"], row["codec"]) for row in results] == list(itertools.product(OPTIMIZERS, CODECS))
    for row in results:
        assert min(row[name] for name in ("ratio", "encode_mb_s", "decode_mb_s", "memcpy_mb_s")) > 0
        assert (row["relative_error"] == 0) is (row["codec"] == "float32")


def test_a_broker_that_is_not_there_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pipe", "--bootstrap", "127.0.0.1:1", "--limit", "0.2", "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: not done after 0.2 s (see --limit)"


async def test_a_process_that_fails_says_why(tmp_path: Path) -> None:
    child = await Child.start("broken", "tests.bench.raw_child", "no-such-role", folder=tmp_path)
    try:
        with pytest.raises(BenchmarkFailed, match=r"(?s)broken ended with status 1:.*KeyError: 'no-such-role'"):
            await child.ask("anything")
    finally:
        await child.end()


def test_a_chain_that_counts_everything_once_passes() -> None:
    versions = _versions(SENT[:2], SENT[2:])
    assert check_counts(SENT, versions) == COUNTED | {"sent": 4, "folded": 4, "versions": 3}


@pytest.mark.parametrize(
    "versions",
    [
        pytest.param(_versions(SENT[:2], SENT[2:3]), id="one lost"),
        pytest.param(_versions(SENT[:2], SENT[1:]), id="one repeated"),
        pytest.param(_versions(SENT, [("c", 0)]), id="one unknown"),
        pytest.param(_versions(SENT[:2], SENT[2:])[1:], id="no version 0"),
        pytest.param([*_versions(SENT), *_versions()], id="a version twice"),
    ],
)
def test_anything_else_is_no_result(versions: list[VersionHead]) -> None:
    with pytest.raises(BenchmarkFailed, match="do not count every update once"):
        check_counts(SENT, versions)


def test_percentiles_are_by_nearest_rank() -> None:
    values = [float(value) for value in range(100, 0, -1)]
    assert [percentile(values, fraction) for fraction in (0.01, 0.5, 0.99, 1.0)] == [1.0, 50.0, 99.0, 100.0]
    assert percentile([7.0], 0.99) == 7.0


@pytest.mark.parametrize(
    ("text", "settings", "shown"),
    [
        ("int8", {"name": "int8"}, "int8"),
        ("topk", {"name": "topk"}, "topk"),
        ("topk:0.01", {"name": "topk", "fraction": 0.01}, "top 1 %"),
    ],
)
def test_a_codec_may_bring_its_fraction(text: str, settings: dict[str, object], shown: str) -> None:
    codec = Codec.parse(text)
    assert codec.settings() == settings
    assert str(codec) == shown


@pytest.mark.parametrize("text", ["int9", "int8:0.5", "topk:", "topk:0", "topk:1.5", "topk:few"])
def test_a_codec_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        Codec.parse(text)


@pytest.mark.parametrize(("text", "value"), [("10_000_000", 10**7), ("1e7", 10**7), ("3", 3)])
def test_numbers_may_be_written_short(text: str, value: int) -> None:
    assert number(text) == value


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "many", "inf"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        number(text)


def test_the_default_run_covers_what_the_pipe_is_judged_by() -> None:
    found = {(cell.numel, str(cell.codec), cell.clients) for cell in usual_cells()}
    sizes = itertools.product((10**6, 10**7, 10**8), ("float32", "int8"), (1, 4, 16))
    assert found == {*sizes, (10**7, "int4", 4), (10**7, "top 1 %", 4)}
    assert {cell.updates for cell in usual_cells() if cell.phases == (ONE_WAY,)} == {100, 1000}
    assert all(cell.each >= 1 for cell in usual_cells())


def test_flower_that_cannot_be_installed_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["flower", "--venv", str(tmp_path / "file" / "venv"), "--output", str(tmp_path)]) == 1
    assert capsys.readouterr().err.startswith("error: Flower cannot be installed")


def test_what_this_machine_cannot_measure_ends_no_run_of_everything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = []

    def refuse(_: argparse.Namespace) -> None:
        raise NotHere("something is missing")

    here = SimpleNamespace(__doc__="Here.", add_arguments=lambda _: None, run=lambda _: run.append("here"))
    there = SimpleNamespace(__doc__="Not here.", add_arguments=lambda _: None, run=refuse)
    modules = {name: there if name == "flower" else here for name in NAMES}
    monkeypatch.setattr("tests.bench.__main__._module", modules.__getitem__)
    assert main([]) == 0
    assert len(run) == len(NAMES) - 1
    assert capsys.readouterr().err == "flower is left out: something is missing\n"
    assert main(["flower"]) == 1


def test_ours_is_told_in_flowers() -> None:
    flower = Measured(updates=8, seconds=40.0, server_app_mib=900.0, superlink_mib=500.0)
    assert beside(flower, []) == [{"name": "Flower", "updates_per_s": 0.2, "times_flower": 1.0, "peak_mib": 900.0}]

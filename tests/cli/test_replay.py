"""`llmos-stream replay` and `audit` on a real Kafka, over a run that one client has poisoned."""

import asyncio
import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from aiokafka import TopicPartition as TheirPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete
from safetensors import safe_open
from safetensors.torch import load_file

from llmos_stream.broker import connect
from llmos_stream.types import EventKind
from tests.cli.aids import Run, Start, wait_for_event
from tests.conftest import KafkaNode
from tests.replay.aids import (
    FLIPPER,
    computed_elsewhere,
    replay_log,
    running_from,
    topics_of,
    write_poisoned,
    write_random,
)
from tests.roles.aids import delta_of, initial, settings_for, update

pytestmark = [pytest.mark.kafka, pytest.mark.xdist_group("replay")]  # one run is written for all of them


@dataclass(frozen=True)
class Poisoned:
    federation: str
    digests: list[str]


async def _poisoned(kafka: KafkaNode, federation: str) -> Poisoned:
    async with connect(kafka.settings()) as broker:
        settings = await write_poisoned(broker, federation)
        async with replay_log(broker, settings) as log:
            digests = [entry.head.weights_digest.hex() for entry in log.index.versions.values()]
    return Poisoned(federation, digests)


@pytest.fixture(scope="module")
def poisoned_run(shared_kafka: KafkaNode) -> Poisoned:
    return asyncio.run(_poisoned(shared_kafka, f"t-{uuid.uuid4().hex[:12]}"))


@pytest.fixture
def poisoned(poisoned_run: Poisoned, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch) -> Poisoned:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", poisoned_run.federation)
    monkeypatch.setenv("LLMOS_TASK__ENTRY", "blobs")
    monkeypatch.setenv("LLMOS_RUNTIME__TORCH_THREADS", "1")
    return poisoned_run


def test_replay_of_everything(llmos: Run, poisoned: Poisoned, monkeypatch: pytest.MonkeyPatch) -> None:
    # What this machine would aggregate with plays no part.
    monkeypatch.setenv("LLMOS_AGGREGATION__BUFFER_SIZE", "7")
    told = llmos("replay", "--json").json()
    assert (told["initial"], told["match"], told["differs"], told["gone"]) == (1, 6, 0, 0)
    assert [row["rebuilt_digest"] for row in told["versions"]] == poisoned.digests
    assert told["build"]["torch"] == torch.__version__
    done = llmos("replay")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    header, first, *rows, last = done.out.splitlines()
    assert header.split()[:3] == ["version", "contributions", "verdict"]
    assert first.split()[:3] == ["0", "0", "initial"]
    assert [row.split()[:4] for row in rows] == [
        [str(number), "3", "match", poisoned.digests[number][:12]] for number in range(1, 7)
    ]
    assert last == "6 versions rebuilt, every digest as published; 1 version where the log begins"


def test_replay_of_some(llmos: Run, poisoned: Poisoned, tmp_path: Path) -> None:
    done = llmos("replay", "3-4", "--json", "--to", tmp_path / "four.safetensors")
    assert [row["version"] for row in json.loads(done.out)["versions"]] == [3, 4]
    with safe_open(tmp_path / "four.safetensors", "pt") as file:
        assert file.metadata()["weights_digest"] == poisoned.digests[4]
    assert [row["version"] for row in llmos("replay", "5", "--json").json()["versions"]] == [5]


@pytest.mark.parametrize(
    ("arguments", "message", "status"),
    [
        (["7"], "version 7 is not in the log, which holds 0 to 6", 5),
        (["5-9"], "versions 5-9 are not all in the log, which holds 0 to 6", 5),
        (["4-2"], "versions are a number or a range such as 5-12, not '4-2'", 2),
        (["some"], "versions are a number or a range such as 5-12, not 'some'", 2),
        (["--without", "nobody"], "--without: no contribution of nobody in these versions", 5),
        (["--staleness.a", "-1"], "staleness.a: Input should be greater than 0", 2),
        (["--strategy", "fedasync", "--every", "0"], "--every: at least 1", 2),
        (["--to", "/no/such/folder/x"], "--to: there is no folder /no/such/folder", 2),
    ],
)
def test_what_makes_no_sense_is_one_line(
    llmos: Run, poisoned: Poisoned, arguments: list[str], message: str, status: int
) -> None:
    done = llmos("replay", *arguments)
    assert (done.status, done.error()) == (status, message)


def test_without_the_poisoner(llmos: Run, poisoned: Poisoned, tmp_path: Path) -> None:
    path = tmp_path / "clean.safetensors"
    done = llmos("replay", "--without", FLIPPER, "--every", "3", "--to", path)
    assert done.status == 0
    assert done.err == f"wrote the weights to {path}\n"
    what, header, *rows = done.out.splitlines()
    assert what == f"what if: without {FLIPPER}"
    assert header.split() == ["version", "metric", "original", "what", "if", "difference"]
    accuracy = {row.split()[0]: row.split()[2:] for row in rows if "accuracy" in row}
    assert list(accuracy) == ["3", "6"]
    assert float(accuracy["6"][0]) < 0.5 < float(accuracy["6"][1])
    assert "12 updates folded, 6 removed; 6 versions in place of 6" in rows
    assert rows[-1].startswith("Later updates were trained on models that contained the removed contributions")
    assert all(torch.isfinite(tensor).all() for tensor in load_file(path).values())
    with safe_open(path, "pt") as file:
        assert file.metadata()["what_if"] == f"without {FLIPPER}"

    told = llmos("replay", "--without", FLIPPER, "--no-evaluation", "--json").json()
    assert (told["folded"], told["removed"], told["evaluations"]) == (12, 6, [])
    assert told["note"].startswith("Later updates were trained")
    assert told["without"] == [FLIPPER]


def test_under_other_rules(llmos: Run, poisoned: Poisoned) -> None:
    told = llmos("replay", "--strategy", "fedasync", "--staleness", "hinge", "--aggregation.mixing", "0.3", "--json")
    found = told.json()
    assert found["settings"] == {
        "aggregation": {"mixing": 0.3, "strategy": "fedasync"},
        "staleness": {"kind": "hinge"},
    }
    assert (found["versions"], found["original_versions"], found["folded"]) == (18, 6, 18)
    assert found["evaluations"][0]["original"]["metrics"]["accuracy"] < 0.5
    assert found["difference"]["relative_l2"] > 0

    # No update was stale, so the kind of staleness changes nothing.
    done = llmos("replay", "--staleness", "constant", "--no-evaluation")
    assert "the weights are those of version 6, bit for bit" in done.out.splitlines()


def test_audit(llmos: Run, poisoned: Poisoned) -> None:
    found = llmos("audit", "3", "--json").json()
    assert (found["number"], found["parent"], found["weights_digest"]) == (3, 2, poisoned.digests[3])
    assert [item["client_id"] for item in found["manifest"]] == ["good-0", "good-1", FLIPPER]
    assert [item["log"] for item in found["manifest"]] == ["present"] * 3
    assert sum(item["share"] for item in found["manifest"]) == pytest.approx(1.0)
    assert [item["base_version"] for item in found["manifest"]] == [2, 2, 2]

    done = llmos("audit", "3")
    assert done.status == 0
    lines = done.out.splitlines()
    header = next(number for number, line in enumerate(lines) if line.startswith("client "))
    assert max(map(len, lines[header:])) <= 110
    assert "…" not in done.out
    assert lines[header + 1].split()[0] == "good-0"
    assert lines[header + 1].split()[-1] == "present"
    assert lines[-1].startswith("share: weight x clip / sum of examples")
    assert llmos("audit", "--json").json()["number"] == 6
    assert llmos("audit", "0").out.endswith("no contributions: the weights the log begins with\n")
    done = llmos("audit", "9")
    assert (done.status, done.error()) == (5, "version 9 is not in the log, which holds 0 to 6")


def test_a_federation_without_versions(llmos: Run, on_kafka: str) -> None:
    llmos("topics", "create")
    for command in ("replay", "audit"):
        done = llmos(command)
        assert done.status == 5
        assert done.error().startswith(f"federation {on_kafka} has no versions in the log")


async def _damaged(kafka: KafkaNode, federation: str) -> None:
    """The first updates deleted, and a version whose recorded result is another machine's."""
    async with connect(kafka.settings()) as broker:
        with computed_elsewhere(4, shift=1.0):
            settings = await write_random(broker, federation, "sgd", count=4)
        topics = topics_of(settings)
        async with replay_log(broker, settings) as log:
            cut = log.index.versions[2].head.manifest[0].offset
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap_servers)
    await admin.start()
    await admin.delete_records({TheirPartition(topics.updates, 0): RecordsToDelete(cut)})
    await admin.close()


def test_what_differs_and_what_is_gone(llmos: Run, on_kafka: str, kafka: KafkaNode) -> None:
    asyncio.run(_damaged(kafka, on_kafka))
    done = llmos("replay", "1")
    assert done.status == 1, "asked for by number"
    assert "update a/0 at" in done.out
    assert llmos("replay", "0-2").status == 1
    assert llmos("replay", "2-3").status == 0
    done = llmos("replay", "4")
    assert done.status == 1
    assert f"computed first on torch=0.1, cpu=abacus; here on torch={torch.__version__}" in done.out
    assert done.out.splitlines()[-1] == "1 version rebuilt with another result"
    row = llmos("audit", "1", "--json").json()["manifest"][0]
    assert (row["log"], "deleted by retention" in row["detail"]) == ("gone", True)
    assert "begins at version 1: update " in llmos("replay", "0-3", "--staleness.a", "2", "--no-evaluation").out


@pytest.mark.full
def test_a_shadow_from_the_command_line(
    llmos: Run, on_kafka: str, kafka: KafkaNode, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no task, follows the live run to its end, and can be replayed under its own name."""
    monkeypatch.setenv("LLMOS_TASK__ENTRY", "nowhere:to_be_found")
    shadow = start("aggregator", "--shadow", "adam", "--server-optimizer.name", "adam", "--json")

    async def live() -> None:
        async with connect(kafka.settings()) as broker:
            settings = settings_for(on_kafka, aggregation={"buffer_size": 4}, stop={"max_versions": 2})
            async with running_from(broker, settings, initial()) as running:
                await wait_for_event(kafka.bootstrap_servers, f"{on_kafka}.shadow.adam", EventKind.VERSION_PUBLISHED)
                for number in range(8):
                    await running.send(update(delta_of(1.0), sequence=number))
                await running.version(2)

    asyncio.run(live())
    done = shadow.wait()
    assert done.status == 0, done
    assert (done.json()["reason"], done.json()["version"]) == ("live_ended", 2)
    found = llmos("replay", "--federation.name", f"{on_kafka}.shadow.adam", "--json").json()
    assert (found["initial"], found["match"]) == (1, 2)
    done = llmos("aggregator", "--shadow", "a b")
    assert (done.status, done.error()[:16]) == (2, "federation.name:")

"""`llmos-stream versions` on a real Kafka: what the log holds, and a version as a file."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from llmos_stream.broker import Topics, connect
from llmos_stream.config import load
from llmos_stream.log.versions import Version
from tests.cli.aids import Run
from tests.cli.logged import WEIGHT, Logged
from tests.conftest import KafkaNode
from tests.federation import decoded_versions

pytestmark = pytest.mark.kafka


async def _in_the_log(kafka: KafkaNode, federation: str) -> list[Version]:
    topic = Topics(federation).models
    async with connect(kafka.settings()) as broker, broker.reader([topic], start="earliest") as reader:
        return [replace(found, weights=found.weights.clone()) async for found in decoded_versions(reader, load().wire)]


def test_list(llmos: Run, logged: Logged, kafka: KafkaNode) -> None:
    heads = [version.head for version in asyncio.run(_in_the_log(kafka, logged.federation))]
    rows = llmos("versions", "list", "--json").json()
    assert [row["version"] for row in rows] == [0, 1]
    assert [row["weights_digest"] for row in rows] == [head.weights_digest.hex() for head in heads]
    assert [(row["contributions"], row["clients"]) for row in rows] == [(0, 0), (2, 2)]
    assert rows[0]["offset"] < rows[1]["offset"]

    done = llmos("versions", "list")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert "…" not in done.out
    _, first, second = done.out.splitlines()
    assert "initial weights" in first
    assert "2 from 2 clients" in second
    assert (" delta " in first, " delta " in second) == (False, True)
    assert second.endswith(heads[1].weights_digest.hex()[:12])


def test_show(llmos: Run, logged: Logged) -> None:
    newest = llmos("versions", "show", "--json").json()
    assert newest == llmos("versions", "show", "1", "--json").json()
    assert (newest["number"], newest["parent"], newest["kind"]) == (1, 0, "delta version")
    assert [(item["client_id"], item["sequence"]) for item in newest["manifest"]] == [("a", 5), ("b", 0)]
    assert newest["manifest"][0]["offset"] == logged.first

    done = llmos("versions", "show")
    assert done.status == 0
    assert "aggregation (strategy=fedbuff, buffer_size=2" in done.out
    assert "None" not in done.out.replace("clip_norm=None", "")
    *_, header, first, second = done.out.splitlines()
    assert header.split() == ["client", "sequence", "examples", "staleness", "weight", "clip", "partition", "offset"]
    assert first.split() == ["a", "5", "30", "0", "30", "1", "0", str(logged.first)]
    assert second.split()[0] == "b"
    assert llmos("versions", "show", "0").out.endswith("no contributions: the initial weights\n")


def test_export(llmos: Run, logged: Logged, kafka: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    initial, newest = asyncio.run(_in_the_log(kafka, logged.federation))
    told = llmos("versions", "export", "--json").json()
    assert told["file"] == f"{logged.federation}-v1.safetensors"
    tensors = load_file(tmp_path / told["file"])
    assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == {"w": (40,), "b": (2, 5)}
    # A delta of int4: the change to within a step and the rounding of its scale.
    assert all(torch.allclose(tensor, torch.full_like(tensor, WEIGHT), rtol=0.01) for tensor in tensors.values())
    expected = newest.layout.unflatten(newest.weights)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    with safe_open(tmp_path / told["file"], "pt") as file:
        assert file.metadata() == {
            "federation": logged.federation,
            "version": "1",
            "weights_digest": newest.head.weights_digest.hex(),
        }

    done = llmos("versions", "export", "0", "--to", "first.safetensors")
    assert done.status == 0
    assert done.out == "wrote version 0, 2 tensors, to first.safetensors\n"
    assert not load_file(tmp_path / "first.safetensors")["w"].any()
    assert initial.head.number == 0
    assert sorted(path.name for path in tmp_path.glob("*.*")) == sorted([told["file"], "first.safetensors"])


def test_export_to_where_nothing_can_be_written(llmos: Run, logged: Logged, tmp_path: Path) -> None:
    done = llmos("versions", "export", "--to", tmp_path / "no" / "x.safetensors")
    assert (done.status, done.error()) == (2, f"--to: there is no folder {tmp_path / 'no'}")
    folder = tmp_path / "folder"
    folder.mkdir()
    done = llmos("versions", "export", "--to", folder)
    assert done.status == 2
    assert done.error() == f"--to: {folder} is a folder"
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize("action", ["show", "export"])
def test_a_version_that_is_not_there(llmos: Run, logged: Logged, action: str) -> None:
    done = llmos("versions", action, "99")
    assert (done.status, done.error()) == (5, "version 99 is not in the log, which holds 0 to 1")


def test_an_empty_federation(llmos: Run, on_kafka: str) -> None:
    done = llmos("versions", "list")
    assert done.status == 5
    assert done.error().startswith(f"there is no topic {on_kafka}.models: ")
    llmos("topics", "create")
    assert llmos("versions", "list", "--json").json() == []
    done = llmos("versions", "list")
    assert done.status == 0
    assert done.out.startswith(f"federation {on_kafka} has no versions in the log")
    for number in ([], ["3"]):
        done = llmos("versions", "show", *number)
        assert done.status == 5
        assert done.error().startswith(f"federation {on_kafka} has no versions in the log")

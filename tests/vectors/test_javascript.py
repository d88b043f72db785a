"""A client in JavaScript, written from the protocol's page: on the test vectors, and in a federation on Kafka."""

import asyncio
import json
import random
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from torch import nn

from llmos_stream.broker import connect
from llmos_stream.codec import Layout
from llmos_stream.testing import quick_settings, running_federation
from tests.conftest import IN_CI, KafkaNode
from tests.docs.pages import DOCS, ROOT

SPARSE, FRAGMENTS = ("update-topk", "update-topk2"), ("update-fragment-1", "chain-fragments-2")
INSTALLED = ROOT / "build" / "javascript"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The client beside the modules that it needs; skips where there are none, fails where CI has Node."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("there is no Node here")
    if not (INSTALLED / "node_modules").is_dir():
        reason = "the client's modules are not here: make javascript"
        if IN_CI:
            pytest.fail(reason)
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("javascript")
    for file in (DOCS / "javascript").glob("*.mjs"):
        shutil.copy(file, folder)
    (folder / "node_modules").symlink_to(INSTALLED / "node_modules")
    return folder


def test_the_modules_are_those_that_its_package_names(client: Path) -> None:
    wanted = json.loads((DOCS / "javascript" / "package.json").read_text())["dependencies"]
    for name, version in wanted.items():
        assert json.loads((client / "node_modules" / name / "package.json").read_text())["version"] == version


def test_it_reads_and_writes_the_test_vectors(client: Path) -> None:
    done = _node(client, "vectors.mjs", DOCS / "vectors")
    assert (done.returncode, done.stderr) == (0, "")
    counts = json.loads(done.stdout)
    assert counts["frames"] + counts["chunks"] + counts["records"] == len(list((DOCS / "vectors").glob("*.bin")))
    assert counts["updates"] >= 10
    assert counts["versions"] == 11
    assert counts["fragments"] == 2
    assert counts["encoded"] == 2


@pytest.mark.parametrize("name", ["update-int4", "chain-2", "chunk-1", "control-latest", *SPARSE, *FRAGMENTS])
def test_one_wrong_byte_in_a_vector_is_found(client: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(DOCS / "vectors", tmp_path / "vectors"))
    data = bytearray((folder / f"{name}.bin").read_bytes())
    data[-1] ^= 1
    (folder / f"{name}.bin").write_bytes(data)
    assert _node(client, "vectors.mjs", folder).returncode != 0


def test_it_cuts_a_model_as_the_package_does(client: Path) -> None:
    generator, cases, expected = random.Random(3), [], []  # noqa: S311
    for _ in range(60):
        sizes = [generator.choice([0, 1, 5, 5, 90, 1000]) for _ in range(generator.randint(1, 9))]
        named = {f"w{place} größe": torch.zeros(size) for place, size in enumerate(sizes)}
        buffers = list(named)[: generator.randint(0, 2)]
        layout, rows = Layout.of(named, buffers), [spec.row for spec in Layout.of(named, buffers).tensors]
        for count in range(1, 6):
            try:
                cut = [[list(one.range), one.digest.hex(), one.buffer_elements] for one in layout.fragments(count)]
            except ValueError:
                continue
            cases.append([rows, count])
            expected.append(cut)
    script = (
        "import { fragmentsOf, hex } from './llmos.mjs';"
        "const found = JSON.parse(process.argv[1]).map(([rows, count]) => fragmentsOf(rows, count)"
        ".map((one) => [one.range, hex(one.layout), one.buffers]));"
        "console.log(JSON.stringify(found));"
    )
    done = _node(client, "--input-type=module", "-e", script, json.dumps(cases))
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout) == expected
    assert {len(cut) for cut in expected} == {1, 2, 3, 4, 5}


@pytest.mark.kafka
@pytest.mark.parametrize("fragments", [1, pytest.param(2, marks=pytest.mark.full)])
async def test_its_updates_count_and_it_follows_the_chain(
    client: Path, kafka: KafkaNode, federation: str, fragments: int
) -> None:
    torch.manual_seed(5)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    aggregation = {"buffer_size": 1, "fragments": fragments}
    settings = quick_settings(federation, versions={"full_every": 16}, aggregation=aggregation)
    async with connect(kafka.settings()) as broker, running_federation(model, settings, broker) as running:
        process = await asyncio.create_subprocess_exec(
            "node",
            client / "client.mjs",
            kafka.bootstrap_servers,
            federation,
            "js",
            "3",
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            version = await running.version(3)
            said, failed = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, failed.decode()
    assert [line for line in said.decode().splitlines() if line.startswith("version")] == [
        f"version {number}: digest ok" for number in range(4)
    ]
    assert [(item.client_id, item.sequence) for item in version.head.manifest] == [("js", 2)]
    parameters, buffers = running.initial.layout.parts(running.initial.weights)
    reached, values = running.initial.layout.parts(version.weights)
    learnt = torch.full_like(parameters, 0.9**3)
    if fragments > 1:  # the second has moved once, by what two trainings made of it
        learnt[running.initial.layout.fragments(2)[0].end :] = 0.9**2
    torch.testing.assert_close(reached, parameters * learnt, atol=0.02, rtol=0.02)
    assert torch.equal(values, buffers)


def _node(client: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, cwd=client, capture_output=True, text=True, check=False, timeout=60)

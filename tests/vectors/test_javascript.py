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
from llmos_stream.codec import Layout, decode
from llmos_stream.testing import quick_settings, running_federation
from llmos_stream.types import UpdateHead
from llmos_stream.wire import Assembler, Message
from tests.conftest import IN_CI, KafkaNode
from tests.docs.pages import DOCS, ROOT
from tests.vectors.make import BUFFERED, CUT

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


STAND_IN = """
import { appendFileSync, readFileSync } from 'node:fs';
import { cut } from '../../llmos.mjs';
const nothing = async () => {};
export const logLevel = {};
export const Partitioners = {};
export class Kafka {
  producer() {
    const keep = ({ value }) => appendFileSync('sent', `${value.toString('hex')}\\n`);
    return { connect: nothing, disconnect: nothing, send: async ({ messages }) => messages.forEach(keep) };
  }
  consumer() {
    const run = async ({ eachMessage }) => {
      for (const name of ['0', '1', '2', '3']) {
        for (const value of cut(readFileSync(`chain-fragments-${name}.bin`))) {
          await eachMessage({ topic: 'ward.models', partition: 0, message: { value } });
        }
      }
    };
    return { connect: nothing, disconnect: nothing, subscribe: nothing, run };
  }
}
"""
"""In the place of Kafka's client: the versions of a chain come, and what is sent goes into a file."""


def test_it_sends_the_fragment_whose_turn_it_is_and_carries_the_rest(client: Path, tmp_path: Path) -> None:
    for file in [*client.glob("*.mjs"), *(DOCS / "vectors").glob("chain-fragments-*.bin")]:
        shutil.copy(file, tmp_path)
    (own := tmp_path / "node_modules" / "kafkajs").mkdir(parents=True)
    for module in (client / "node_modules").iterdir():
        if module.name != own.name:
            (own.parent / module.name).symlink_to(module)
    (own / "package.json").write_text('{"name": "kafkajs", "type": "module", "exports": "./index.mjs"}')
    (own / "index.mjs").write_text(STAND_IN)
    done = _node(tmp_path, "client.mjs", "localhost:1", "ward", "js", "3")
    assert (done.returncode, done.stderr) == (0, "")

    carry = torch.zeros(BUFFERED.parameters)
    assembler = Assembler(lambda prelude: None, 1 << 20)
    for number, line in enumerate((tmp_path / "sent").read_text().split()):
        (message,) = assembler.push(bytes.fromhex(line), key=b"js", partition=0, offset=number, now=0.0)
        assert isinstance(message, Message)
        head, fragment = message.head, CUT[number % 2]
        assert isinstance(head, UpdateHead)
        assert (head.sequence, head.base_version) == (number, number)
        assert (head.range, head.layout_digest) == (fragment.range, fragment.digest)
        values = json.loads((DOCS / "vectors" / f"chain-fragments-{number}.json").read_text())["values"]
        parameters, measured = BUFFERED.parts(torch.tensor(values))
        learnt = carry - 0.1 * (parameters + carry)
        here = slice(fragment.begin, fragment.begin + fragment.parameters)
        buffers = torch.zeros(fragment.buffer_elements)
        delta = decode(message.parts, head.codec, fragment.parameters, buffers=buffers)
        torch.testing.assert_close(delta, learnt[here], atol=1e-3, rtol=0)
        assert buffers.tolist() == (measured.tolist() if fragment.buffers else [])
        carry = learnt.clone()
        carry[here] = 0
    assert number == 2


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

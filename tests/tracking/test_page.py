"""The page on tracking, on a real Kafka: what its commands leave behind, and its snippet."""

import os
import re
import shlex
from pathlib import Path

import pytest

from llmos_stream.broker import connect
from llmos_stream.tracking.frames import RunTables
from tests.cli.aids import Run
from tests.conftest import KafkaNode
from tests.docs.pages import DOCS, blocks_of, commands_in
from tests.tracking.aids import write_run

pytestmark = [pytest.mark.kafka, pytest.mark.full, pytest.mark.timeout(300)]

_PAGE = DOCS / "tracking.md"


@pytest.fixture
async def hospital(kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A run that has ended."""
    async with connect(kafka.settings()) as broker:
        await write_run(broker, federation)
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", federation)
    monkeypatch.chdir(tmp_path)
    return federation


@pytest.mark.usefixtures("hospital")
def test_the_commands(llmos: Run, tmp_path: Path) -> None:
    commands = [command for command in commands_in(_PAGE.read_text()) if command.startswith("llmos-stream track")]
    assert len(commands) == 5
    ended = [llmos(*shlex.split(command)[1:]) for command in commands]
    # wandb tells of the libraries that other tests have imported into this process.
    said = [[line for line in done.err.splitlines() if not line.startswith("wandb: ")] for done in ended]
    assert [done.status for done in ended] == [0] * len(commands)
    assert said == [[]] * len(commands)
    told = ended[-1].json()  # it had nothing left to do
    assert (told["finished"], told["version"], told["points"]) == ("max_versions", 5, {"csv:tracked": 0})
    assert re.search(r"[1-9][0-9]* new points to csv:tracked and 0 new points to tensorboard:runs", ended[1].out)
    assert {path.name for path in tmp_path.iterdir()} >= {"runs", "tracked", "mlflow.db", "wandb-runs"}


def test_the_snippet(hospital: str) -> None:
    (block,) = (block for block in blocks_of(_PAGE) if block.language == "python")
    code = block.text.replace('federation="hospital"', f'federation="{hospital}"')
    code = code.replace("host:9092", os.environ["LLMOS_BROKER__BOOTSTRAP_SERVERS"])
    known: dict[str, object] = {}
    for line in code.splitlines():
        if ".plot(" not in line:  # needs matplotlib
            exec(line, known)  # noqa: S102
    run = known["run"]
    assert isinstance(run, RunTables)
    assert run.evaluations.columns.tolist()[:2] == ["version", "time"]
    assert run.finished == "max_versions"

"""`llmos-stream clients` on a real Kafka, as its page has it."""

import re
import shlex

import pytest

from llmos_stream.broker import connect
from tests.cli.aids import Run
from tests.cli.fixtures import _own_terminal_and_home, llmos
from tests.conftest import KafkaNode
from tests.docs.pages import DOCS, commands_in
from tests.tracking.aids import write_run

__all__ = ["_own_terminal_and_home", "llmos"]

_PAGE = DOCS / "participation.md"


@pytest.fixture
async def run_of_two(kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch) -> str:
    async with connect(kafka.settings()) as broker:
        await write_run(broker, federation)
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", federation)
    return federation


@pytest.mark.kafka
@pytest.mark.timeout(300)
@pytest.mark.usefixtures("run_of_two")
def test_the_commands_of_the_page(llmos: Run) -> None:
    commands = [command for command in commands_in(_PAGE.read_text()) if command.startswith("llmos-stream clients")]
    assert len(commands) == 7
    done = [llmos(*shlex.split(command, comments=True)[1:]) for command in commands]
    assert [one.status for one in done] == [0] * 7, done
    listed, topk, paced, reset, forbidden, allowed, last = done
    assert re.search(r"^client-0 +done +3 +0 ", listed.out, re.MULTILINE)
    assert topk.out == "ward-7: codec.name topk, codec.fraction 0.05 (slow link)\n"
    assert paced.out == "ward-7: codec.name topk, codec.fraction 0.05, client.pace_seconds 60 (slow link)\n"
    assert reset.out == "ward-7: takes part under its own settings\n"
    assert forbidden.out == "ward-9: forbidden: its updates are refused, and it leaves (broken sensor)\n"
    assert allowed.out == "ward-9: takes part under its own settings\n"
    assert [row["client_id"] for row in last.json()] == ["client-0", "client-1"]

    assert llmos("clients", "forbid", "ward-9", "--reason", "broken sensor", "--json").json() == {
        "client_id": "ward-9",
        "forbidden": True,
        "settings": {},
        "reason": "broken sensor",
    }
    row = llmos("clients", "--json").json()[-1]
    assert (row["client_id"], row["wanted"], row["updates"]) == ("ward-9", False, 0)
    assert "broken sensor" in llmos("clients").out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["set", "ward-7"], "set takes NAME=VALUE"),
        (["set", "ward-7", "codec.nam=topk"], "codec.nam: no operator sets this; did you mean codec.name?"),
        (["set", "ward-7", "codec.fraction=2"], "fraction"),
        (["set", "ward-7", "client.lr=2"], "client.lr: no operator sets this"),
        (["forbid"], "forbid needs the id of a client"),
        (["forbid", "../x"], "forbid needs the id of a client"),
        (["allow", "ward-7", "codec.name=topk"], "the other actions take a client alone"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(llmos: Run, arguments: list[str], said: str) -> None:
    done = llmos("clients", *arguments)
    assert done.status == 2
    assert said in done.error()

"""`llmos-stream scenario`: a table, JSON, a page."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from llmos_stream.cli.main import main
from llmos_stream.scenarios import SCENARIOS
from tests.cli.aids import Start
from tests.docs.pages import DOCS, blocks_of, commands_in

_SMALL = ("--seeds", "1", "--seconds", "40")
_UNTIL_TWENTY = ("--seconds", "1e6", "--stop.max-versions", "20")


def test_it_prints_its_tables_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SCENARIOS, "heart", replace(SCENARIOS["heart"], by_site=True))
    page = tmp_path / "heart.html"
    assert main(["scenario", "heart", *_SMALL, "--report", str(page)]) == 0
    printed = capsys.readouterr().out
    for arm in ("pooled", "alone", "synchronous", "asynchronous", "personalised"):
        assert f"\n{arm} " in printed
    (sites,) = [line.split() for line in printed.splitlines() if line.startswith("Switzerland")]
    assert len(sites) == 6
    assert "<polyline" in page.read_text()


def test_it_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "heart", *_SMALL, "--json", "--task.options", "rows=complete", "--first-seed", "3"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["scenario"] == "heart"
    assert said["seeds"] == [3]
    assert 0.5 < said["arms"]["asynchronous"]["at_home"]["accuracy"]["mean"] <= 1.0


def test_it_runs_for_real_in_this_process(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--broker", "embedded", "--tick", "0.02", *_UNTIL_TWENTY, "--first-seed", "2", "--json"]
    assert main(["scenario", "heart", *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["scenario"], said["broker"], said["finished"]) == ("heart", "embedded", "max_versions")
    assert (said["clients"], said["version"]) == (4, 20)
    assert 0.5 < said["metrics"]["accuracy"] <= 1.0


@pytest.mark.kafka
@pytest.mark.full
@pytest.mark.usefixtures("on_kafka")
def test_it_runs_as_a_process_for_each_site(start: Start) -> None:
    done = start("scenario", "heart", "--broker", "kafka", *_UNTIL_TWENTY, "--json").wait()
    assert done.status == 0, done
    said = done.json()
    assert (said["broker"], said["clients"], said["finished"]) == ("kafka", 4, "max_versions")
    assert said["metrics"]["accuracy"] > 0.5


def test_it_runs_the_arms_that_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--arms", "asynchronous,alone", "--rows", "validation", "--json"]
    assert main(["scenario", "heart", *_SMALL, *words]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said["arms"]) == ["pooled", "alone", "asynchronous"]
    assert said["rows"] == "validation"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--broker", "embedded", "--arms", "alone"], "--arms"),
        (["--broker", "embedded", "--rows", "validation"], "--rows"),
        (["--seeds", "0"], "--seeds"),
        (["--seconds", "0"], "--seconds"),
        (["--task.options", "rows=few"], "rows=all"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scenario", "heart", "--seeds", "1", *words]) != 0
    assert why in capsys.readouterr().err


def test_an_arm_that_there_is_not_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["scenario", "heart", "--arms", "alone,best"])
    assert "there is no best, but pooled, alone" in capsys.readouterr().err


def _pages_commands() -> list[str]:
    blocks = [block for block in blocks_of(DOCS / "scenarios.md") if block.language == "bash"]
    return [command for block in blocks for command in commands_in(f"```bash\n{block.text}```")]


def _once_quick() -> list[object]:
    """The page's commands; those on others, 15 s and more, show nothing more of the command than those on hospitals."""
    return [
        pytest.param(command, marks=() if "heart" in command else pytest.mark.full) for command in _pages_commands()
    ]


@pytest.mark.parametrize("command", _once_quick())
def test_the_pages_commands_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = shlex.split(command, comments=True)[1:]
    assert main([*words, "--seconds", "10", *([] if "--broker" in words else ["--seeds", "1"])]) == 0


def test_the_page_has_a_command_for_each_scenario() -> None:
    assert {command.split()[2] for command in _pages_commands()} == set(SCENARIOS)

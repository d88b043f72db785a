import json
from pathlib import Path

import pytest

from llmos_stream.cli.main import main
from llmos_stream.errors import ConfigError
from llmos_stream.simulation import Arm, Result, runner
from tests.simulation.aids import DEVICES

_ARMS = """
[arms.small]
aggregation.buffer_size = 2
[arms.large]
aggregation.buffer_size = 8
"""


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    lines = []
    for section, fields in DEVICES.items():
        lines += [f"[{section}]", *(f"{name} = {json.dumps(value)}" for name, value in fields.items())]
    file = tmp_path / "study.toml"
    file.write_text("\n".join(lines) + _ARMS)
    return file


def test_arms_are_compared_in_a_table(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(study), "--seeds", "2", "--workers", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0].split()[:2] == ["arm", "accuracy"]
    assert [line.split()[0] for line in said[1:3]] == ["small", "large"]
    assert "of 2" in said[1]
    page = (study.parent / "study" / "report.html").read_text()
    for words in ("Accuracy by virtual seconds", "Time to the target", "small", "large", "aggregation.buffer_size"):
        assert words in page
    assert (study.parent / "study" / "runs.csv").read_text().count("\n") == 5
    assert "accuracy" in (study.parent / "study" / "points.csv").read_text().splitlines()[0]


def test_what_is_done_is_not_done_again(
    study: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["simulate", str(study), "--workers", "1", "--json"]
    assert main(command) == 0
    first = json.loads(capsys.readouterr().out)
    done = []

    def refused(arm: Arm, seed: int, _: object) -> Result:
        done.append((arm.name, seed))
        raise ConfigError("not again")

    monkeypatch.setattr(runner, "simulate", refused)
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == first
    assert [arm["arm"] for arm in first["arms"]] == ["small", "large"]
    assert main([*command, "--set", "speed.sigma=0.5"]) == 2
    assert "small, seed 0: not again" in capsys.readouterr().err
    assert done == [("small", 0)]


def test_the_results_of_a_run_that_refuses_updates_are_written(study: Path) -> None:
    """In rounds of 3 of 10 that are at work, some come while an update of theirs waits, or once their round is over."""
    arm = """
[arms.rounds]
aggregation.strategy = "fedavg"
aggregation.buffer_size = 3
"""
    study.write_text(study.read_text().replace(_ARMS, arm))
    assert main(["simulate", str(study), "--workers", "1"]) == 0
    (run,) = (study.parent / "study" / "runs").iterdir()
    refused = json.loads(run.read_bytes())["refused"]
    assert refused["one_a_round"] > 0
    assert refused["too_stale"] > refused["one_a_round"]  # their clients did not send them


def test_a_wrong_word_is_answered_in_one_line(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", str(study), "--set", "speed.sigmo=1"]) == 2
    assert capsys.readouterr().err == "error: speed.sigmo: there is no such setting; did you mean speed.sigma?\n"
    assert main(["simulate", "nothing.toml"]) == 2
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.full
def test_results_do_not_depend_on_the_workers(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for workers in ("1", "2"):
        assert main(["simulate", str(study), "--workers", workers, "--json", "--output", f"with-{workers}"]) == 0
        found.append(json.loads(capsys.readouterr().out)["arms"])
        digests = [
            json.loads(path.read_bytes())["digest"] for path in sorted(Path(f"with-{workers}", "runs").iterdir())
        ]
        found.append(digests)
    assert found[:2] == found[2:]

"""`llmos-stream new`: each template's project runs as it is, and what cannot be one is refused in one line."""

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.cli.main import make_parser
from llmos_stream.scaffold.kinds import KINDS
from tests.cli.aids import Run, Running
from tests.cli.fixtures import _own_terminal_and_home, llmos, on_kafka
from tests.conftest import KafkaNode

__all__ = ["_own_terminal_and_home", "llmos", "on_kafka"]


@pytest.mark.parametrize(
    "template", ["tabular", *(pytest.param(name, marks=pytest.mark.full) for name in KINDS if name != "tabular")]
)
def test_its_own_tests_pass(llmos: Run, tmp_path: Path, template: str) -> None:
    made = llmos("new", tmp_path / "north-wards", "--template", template)
    assert made.status == 0, made
    running = Running(["-q", "-p", "no:cacheprovider", "-p", "no:randomly"], tmp_path / "north-wards", "pytest")
    try:
        done = running.wait()
    finally:
        running.end()
    assert done.status == 0, done
    assert "2 passed" in done.out


def test_the_files_are_the_same_each_time(llmos: Run, tmp_path: Path) -> None:
    for template in KINDS:
        first, second = tmp_path / f"a-{template}" / "wards", tmp_path / f"b-{template}" / "wards"
        told = llmos("new", first, "--template", template, "--json").json()
        llmos("new", second, "--template", template)
        assert told["folder"] == str(first)
        assert told["template"] == template
        assert [(first / name).read_bytes() for name in told["files"]] == [
            (second / name).read_bytes() for name in told["files"]
        ]
        suffix = KINDS[template].suffix
        assert sorted(told["files"]) == sorted(
            [
                "README.md",
                "llmos.toml",
                "wards.py",
                "test_wards.py",
                *(f"data/{name}.{suffix}" for name in ("site-a", "site-b", "test")),
            ]
        )


@pytest.mark.parametrize("template", KINDS)
def test_the_readme_is_one_screen_and_its_commands_exist(llmos: Run, tmp_path: Path, template: str) -> None:
    llmos("new", tmp_path / "wards", "--template", template)
    readme = (tmp_path / "wards" / "README.md").read_text()
    assert len(readme.splitlines()) <= 40
    assert "$" not in readme
    commands = re.findall(r"^    (llmos-stream .*)$", readme, re.MULTILINE)
    assert len(commands) >= 5
    for command in commands:
        arguments = make_parser().parse_args(shlex.split(command)[1:])
        data = getattr(arguments, "setting:client.data", None)
        assert data is None or (tmp_path / "wards" / data).is_file()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "3 wards!",
            "'3 wards!' is no name of letters, digits, - and _ that begins with a letter; did you mean wards?",
        ),
        ("wards of mine", "did you mean wards-of-mine?"),
        ("!", "that begins with a letter"),
        ("random", "Python has a module random already; did you mean random-federation?"),
        ("torch", "Python has a module torch already"),
        ("class", "Python has a module class already"),
    ],
)
def test_a_name_that_cannot_be_one_is_refused(llmos: Run, tmp_path: Path, name: str, said: str) -> None:
    done = llmos("new", tmp_path / name)
    assert done.status == 2
    assert said in done.error()
    assert not list(tmp_path.glob("*.py"))


def test_a_folder_with_something_in_it_is_left_alone(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "wards").mkdir()
    (tmp_path / "wards" / "thesis.txt").write_text("mine")
    done = llmos("new", tmp_path / "wards")
    assert done.status == 2
    assert done.error() == f"{tmp_path / 'wards'}: the folder is not empty; choose another name, or empty it first"
    assert [path.name for path in (tmp_path / "wards").iterdir()] == ["thesis.txt"]


def test_a_folder_of_its_name_in_the_current_one_is_no_package(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`python -m` has the current folder on its path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "wards_c").mkdir()
    assert llmos("new", "wards_c").status == 0
    assert "wards_c: the folder is not empty" in llmos("new", "wards_c").error()


def test_a_package_of_a_virtual_environment_in_the_current_folder_is_one(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages = tmp_path / ".venv" / "lib" / "site-packages"
    (packages / "wards_d").mkdir(parents=True)
    (packages / "wards_d" / "__init__.py").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(packages)
    assert "Python has a module wards_d already" in llmos("new", "wards_d").error()


def test_a_file_in_its_place_and_an_unknown_template_are_said(llmos: Run, tmp_path: Path) -> None:
    (tmp_path / "wards").write_text("mine")
    assert llmos("new", tmp_path / "wards").error().startswith(f"{tmp_path / 'wards'}: ")
    assert "did you mean tabular?" in llmos("new", tmp_path / "other", "--template", "tabulr").error()


def test_a_wrong_file_is_said_with_its_line(tmp_path: Path, llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    llmos("new", tmp_path / "wards_a", "--template", "tabular")
    monkeypatch.chdir(tmp_path / "wards_a")
    monkeypatch.syspath_prepend(tmp_path / "wards_a")
    table = Path("data/site-a.csv")
    rows = table.read_text().splitlines()
    for changed, said in (
        ([rows[0].replace("pulse", "heart"), *rows[1:]], "there is no column pulse; its columns are age, temperature,"),
        ([*rows[:4], "40,warm,80,97,home"], "site-a.csv, line 5: could not convert string to float: 'warm'"),
        ([*rows[:2], "40,37,80,97,heaven"], "site-a.csv, line 3: 'heaven' is not in list"),
        (rows[:1], "there is no row in it"),
    ):
        table.write_text("\n".join(changed) + "\n")
        assert said in _why(table)


def _why(table: Path) -> str:
    from llmos_stream.config import load  # noqa: PLC0415
    from llmos_stream.errors import TaskError  # noqa: PLC0415
    from llmos_stream.training import load_task  # noqa: PLC0415

    settings = load({"client": {"data": str(table)}}, Path("llmos.toml"))
    with pytest.raises(TaskError) as caught:
        load_task(settings.task, settings.client).train_batches()
    return str(caught.value)


@pytest.mark.kafka
def test_a_process_each_where_only_the_sites_have_their_data(
    llmos: Run, on_kafka: str, kafka: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sites, centre = tmp_path / "sites" / "wards_b", tmp_path / "centre"
    assert llmos("new", sites, "--template", "tabular", "--json").status == 0
    monkeypatch.delenv("LLMOS_TASK__ENTRY")
    monkeypatch.setenv("LLMOS_CONFIG", "llmos.toml")
    monkeypatch.setenv("LLMOS_STOP__MAX_VERSIONS", "4")
    shutil.copytree(sites, centre)
    for path in centre.glob("data/site-*"):
        path.unlink()
    started: list[Running] = []

    def start(folder: Path, *arguments: Any) -> Running:
        started.append(Running(arguments, folder))
        return started[-1]

    try:
        clients = [
            start(sites, "client", "--json", "--client.id", name, "--client.data", f"data/{name}.csv")
            for name in ("site-a", "site-b")
        ]
        for client in clients:
            client.line("err", "waiting for")  # or one could make all versions while the other begins
        aggregator = start(centre, "aggregator", "--json")
        evaluator = start(centre, "evaluate", "--json")
        serving = start(centre, "serve", "--json", "--inference.port", "0")
        done = aggregator.wait()
        assert (done.status, done.json()["version"]) == (0, 4), done
        for client in clients:
            ended = client.wait()
            assert ended.status == 0, ended
            assert ended.json()["updates"] > 0
        measured = evaluator.wait()
        assert measured.status == 0, measured
        assert measured.json()["metrics"].keys() == {"loss", "accuracy", "confidence"}
        serving.line("err", "predicting")
    finally:
        for running in started:
            running.end()

    monkeypatch.chdir(centre)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (centre / "llmos.toml").write_text(re.sub(r"^test = .*\n", "", (centre / "llmos.toml").read_text(), flags=re.M))
    untested = llmos("evaluate", "--once")
    assert untested.status == 2
    assert "this task has no central test data" in untested.error()


def test_the_settings_file_of_another_folder_is_no_matter(
    llmos: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_CONFIG", "llmos.toml")  # as its own README says, in the folder of another project
    assert llmos("new", tmp_path / "wards").status == 0
    assert "settings file llmos.toml does not exist" in llmos("topics", "list").error()

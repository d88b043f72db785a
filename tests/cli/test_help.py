"""What the command says about itself, and how lightly."""

import json
import os
import re
import subprocess
import sys

import pytest

from llmos_stream import __version__
from llmos_stream.cli.flags import settings_of
from llmos_stream.cli.guesses import GUESSES
from tests.cli.aids import Run

_COMMANDS = (
    "new",
    "demo",
    "aggregator",
    "client",
    "evaluate",
    "archive",
    "topics",
    "versions",
    "replay",
    "audit",
    "inspect",
    "broker",
    "settings",
    "docs",
)

_SCRIPT = f"""
import contextlib, io, json, sys
from llmos_stream.cli.main import main
for arguments in (["--help"], *([name, "--help"] for name in {_COMMANDS})):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
        main(arguments)
main(["settings", "--json"])
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})))
"""


def test_help_comes_at_once_since_it_loads_none_of_the_heavy_libraries() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert "llmos_stream" in loaded
    assert not loaded & {"torch", "numpy", "aiokafka", "plotly", "sklearn", "safetensors", "zstandard", "fsspec"}


def test_the_help_names_every_command_and_where_to_start(llmos: Run) -> None:
    done = llmos("--help")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    for name in _COMMANDS:
        assert any(line.startswith(f"    {name} ") and len(line.split()) > 3 for line in done.out.splitlines()), name
    assert "llmos-stream demo" in done.out
    assert len(done.out.splitlines()) <= 40
    whole = llmos("--help-all")
    assert whole.status == 0
    assert "LLMOS_BROKER__BOOTSTRAP_SERVERS" in whole.out
    assert max(map(len, whole.out.splitlines())) <= 80


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_help_is_short_and_the_whole_of_it_has_every_setting(llmos: Run, name: str) -> None:
    short, whole = llmos(name, "--help"), llmos(name, "--help-all")
    assert (short.status, whole.status) == (0, 0)
    assert len(short.out.splitlines()) <= 80
    assert max(map(len, whole.out.splitlines())) <= 80
    assert "--help-all" in short.out
    flags = {line.split()[0] for line in short.out.splitlines() if line.startswith("  --")}
    assert flags <= {line.split()[0] for line in whole.out.splitlines() if line.startswith("  --")}
    assert "--broker.request-timeout-seconds" not in short.out


def test_the_demo_takes_every_setting(llmos: Run) -> None:
    whole = llmos("demo", "--help-all").out
    assert {setting.flag for setting in settings_of() if not setting.secret} <= set(whole.split())


@pytest.mark.parametrize("name", _COMMANDS)
def test_each_commands_help_has_examples_whose_flags_it_explains(llmos: Run, name: str) -> None:
    done = llmos(name, "--help")
    assert done.status == 0
    assert max(map(len, done.out.splitlines())) <= 80
    assert done.out.startswith(f"usage: llmos-stream {name} ")
    assert done.out.index("\n\n") < 320, "the usage line is for what matters most"
    explained, _, examples = done.out.partition("examples:\n")
    assert examples
    for example in examples.splitlines():
        words = example.partition("#")[0].split()
        assert words[:2] == ["llmos-stream", name]
        for flag in (word for word in words if word.startswith("--")):
            assert f"  {flag} " in explained or f"  {flag}\n" in explained, flag


def test_the_version(llmos: Run) -> None:
    for words in (["--version"], ["version"]):
        assert llmos(*words).out == f"llmos-stream {__version__}\n"


def test_help_is_a_word_too(llmos: Run) -> None:
    assert llmos("help").out == llmos("--help").out
    assert llmos("help", "client").out == llmos("client", "--help").out


@pytest.mark.parametrize("word", GUESSES)
def test_a_guessed_command_is_answered_with_the_right_one(llmos: Run, word: str) -> None:
    done = llmos(word, "--federation.name", "a")
    assert done.status == 2
    assert done.error() == f"no command is called {word}; {GUESSES[word]} (see llmos-stream --help)"
    named = re.findall(r"`llmos-stream ([^`]+)`", GUESSES[word])
    assert named
    assert word not in _COMMANDS
    for command in named:
        assert llmos(*command.split(), "--help").status == 0


@pytest.mark.parametrize("arguments", [["settings"], ["settings", "--json"]], ids=" ".join)
def test_a_reader_that_has_gone_is_no_error(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        command = [sys.executable, "-m", "llmos_stream", *arguments]
        done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60)
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")

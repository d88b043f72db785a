"""Fixtures of the tests that run the command."""

import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from llmos_stream.cli.main import main, make_parser
from tests.cli.aids import Done, Run, Running, Start
from tests.conftest import KafkaNode


@pytest.fixture(autouse=True)
def _own_terminal_and_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A terminal of 80 columns, and a home of its own."""
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


_parser = cache(make_parser)


def use_one_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the parser of all commands once: it is the same each time, and more than a thousand commands are run."""
    monkeypatch.setattr("llmos_stream.cli.main.make_parser", _parser)


@pytest.fixture
def llmos(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process."""
    use_one_parser(monkeypatch)

    def run(*arguments: object) -> Done:
        capsys.readouterr()
        try:
            status = main([str(argument) for argument in arguments])
        except SystemExit as error:  # argparse's way to end
            status = int(error.code or 0)
        out, err = capsys.readouterr()
        return Done(status, out, err)

    return run


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a command in a process of its own (see `Running`), which does not outlive the test."""
    started: list[Running] = []

    def run(*arguments: object, new: bool = False) -> Running:
        started.append(Running(arguments, tmp_path, new=new))
        return started[-1]

    yield run
    for running in started:
        running.end()


@pytest.fixture
def on_kafka(kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """A federation of its own on the real Kafka, told by the environment; returns its name."""
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", federation)
    monkeypatch.setenv("LLMOS_TASK__ENTRY", "blobs")
    monkeypatch.setenv("LLMOS_RUNTIME__TORCH_THREADS", "1")
    return federation


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where nobody answers, and nobody will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{held.getsockname()[1]}"

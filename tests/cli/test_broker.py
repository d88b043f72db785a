"""`llmos-stream broker`: a real Kafka that starts, says where it is, keeps its log, and stops."""

import os
import signal
import socket
from pathlib import Path

import pytest

from tests.cli.aids import Run, Start
from tests.conftest import need_a_local_kafka


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.kafka
@pytest.mark.full
def test_it_says_where_it_is_until_it_is_stopped_and_keeps_its_log(start: Start, llmos: Run, tmp_path: Path) -> None:
    need_a_local_kafka()
    broker = start("broker", "--data", tmp_path / "data", new=True)
    name, _, address = broker.line("out").removeprefix("export ").partition("=")
    assert name == "LLMOS_BROKER__BOOTSTRAP_SERVERS"
    port = int(address.removeprefix("127.0.0.1:"))
    created = llmos("topics", "create", "--json", "--broker.bootstrap-servers", address).json()
    assert all(topic["created"] for topic in created)
    broker.signal(signal.SIGINT)
    done = broker.wait()
    assert done.status == 0, done
    assert "Ctrl-C stops it" in done.err
    assert not _listens(port)

    broker = start("broker", "start", "--data", tmp_path / "data", "--port", port, "--json", new=True)
    assert broker.line("out") == f'{{"bootstrap_servers":"{address}"}}'
    kept = llmos("topics", "list", "--json", "--broker.bootstrap-servers", address).json()
    assert [topic["name"] for topic in kept] == [topic["name"] for topic in created]
    broker.signal(signal.SIGTERM)
    assert broker.wait().status == 0
    assert not _listens(port)


@pytest.mark.parametrize("port", [0, -1, 65_536])
def test_a_port_that_there_is_not(llmos: Run, port: int) -> None:
    done = llmos("broker", f"--port={port}")
    assert (done.status, done.error()) == (2, f"--port: {port} is not between 1 and 65535")


def test_a_port_that_is_taken(llmos: Run) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        done = llmos("broker", "--port", port)
    assert done.status == 2
    assert done.error().startswith(f"--port: {port} cannot be had: ")


def test_a_folder_that_is_none(llmos: Run, tmp_path: Path) -> None:
    need_a_local_kafka()
    file = tmp_path / "file"
    file.touch()
    done = llmos("broker", "--data", file)
    assert (done.status, done.error()) == (1, f"{file}: {os.strerror(17)}")


def test_no_java(llmos: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = llmos("broker")
    assert done.status == 1
    assert done.error().startswith("Java is not installed; install Java 17 and Maven, or set LLMOS_BROKER__")

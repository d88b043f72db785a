"""A developer's Kafka: what happens around it. That it serves is shown by every test against Kafka."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pytest

from llmos_stream.broker import LocalKafka
from llmos_stream.broker.local import files, jars
from llmos_stream.broker.local.leash import Leashed
from llmos_stream.errors import BrokerError, ConfigError
from tests.broker.helpers import PATIENCE_SECONDS
from tests.conftest import KafkaNode

HOLDER = """
import sys
from llmos_stream.broker.local.leash import Leashed
leashed = Leashed(["/bin/sh", "-c", "echo begun; exec sleep 1000"], sys.stdout.buffer)
sys.stdin.read()
"""

FETCHES = """
for argument in "$@"; do
  case $argument in -DoutputDirectory=*) echo x > "${argument#*=}/one.jar"; echo y > "${argument#*=}/two.jar";; esac
done
"""


def _program(folder: Path, name: str, script: str) -> None:
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)


@contextmanager
def _pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    """Both ends. Reading comes to an end when every process that was given the other end has ended."""
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as read_end, os.fdopen(writing, "wb") as write_end:
        yield read_end, write_end


def test_a_child_on_a_leash_ends_when_its_parent_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        parent.kill()
        assert parent.stdout.read() == b""  # the child held it too


def test_a_child_is_asked_first() -> None:
    with _pipe() as (said, out):
        polite = Leashed(
            ["/bin/sh", "-c", "trap 'echo bye; exit 0' TERM; echo begun; while :; do sleep 0.02; done"], out
        )
        assert said.readline() == b"begun\n"
        assert polite.end(PATIENCE_SECONDS)
        out.close()
        assert said.read() == b"bye\n"


def test_a_child_that_does_not_listen_is_killed() -> None:
    with _pipe() as (said, out):
        deaf = Leashed(["/bin/sh", "-c", "trap '' TERM; echo begun; while :; do sleep 0.02; done"], out)
        assert said.readline() == b"begun\n"
        assert deaf.running
        assert not deaf.end(0.2)
        out.close()
        assert said.read() == b""


def test_what_is_missing_is_said_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert "Java is not installed" in str(LocalKafka.missing())
    _program(tmp_path, "java", "echo 'openjdk version \"11.0.2\"' >&2")
    assert "Java 11 is too old" in str(LocalKafka.missing())
    _program(tmp_path, "java", "echo 'openjdk version \"21\"' >&2")
    assert "Maven is not installed" in str(LocalKafka.missing())
    with pytest.raises(BrokerError, match="install Java 17 and Maven, or set LLMOS_BROKER__BOOTSTRAP_SERVERS"):
        LocalKafka().start()
    jars.folder().mkdir(parents=True)
    assert LocalKafka.missing() is None


def test_jars_appear_whole_even_when_two_fetch_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    _program(tmp_path / "bin", "mvn", FETCHES)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: jars.fetch(), range(4)))
    assert set(folders) == {tmp_path / "cache" / "llmos-stream" / "kafka-4.1.0"}
    assert sorted(path.name for path in folders[0].iterdir()) == ["one.jar", "two.jar"]
    assert [path.name for path in folders[0].parent.iterdir()] == ["kafka-4.1.0"]


def test_maven_that_fails_leaves_nothing_and_is_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "mvn", "echo 'no such repository'; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(BrokerError, match="no such repository"):
        jars.fetch()
    assert not jars.fetched()
    assert list((tmp_path / "cache" / "llmos-stream").iterdir()) == []


@pytest.mark.kafka
@pytest.mark.full
def test_a_start_that_fails_shows_kafkas_own_words(kafka: KafkaNode, tmp_path: Path) -> None:
    taken = int(kafka.bootstrap_servers.rpartition(":")[2])
    second = LocalKafka(tmp_path / "data", port=taken)
    with pytest.raises(BrokerError, match="Address already in use"):
        second.start()
    assert not second.running


@pytest.mark.kafka
@pytest.mark.own_kafka
def test_starting_twice_and_stopping_twice_is_fine(kafka: KafkaNode) -> None:
    local = kafka.own()
    assert local.start() is local
    never = LocalKafka()
    never.stop()
    never.stop()
    with pytest.raises(ValueError, match="start it first"):
        assert never.bootstrap_servers


def _properties(place: files.Place) -> dict[str, str]:
    lines = (place.folder / "server.properties").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_one_node_keeps_one_copy_and_three_keep_three(tmp_path: Path) -> None:
    places = [files.Place(number, tmp_path / str(number), 20_000 + number, 30_000 + number) for number in (1, 2, 3)]
    files.write(places[0], places[:1], {"min.insync.replicas": "9"})
    alone = _properties(places[0])
    assert (alone["default.replication.factor"], alone["transaction.state.log.min.isr"]) == ("1", "1")
    assert alone["min.insync.replicas"] == "9"  # what is given overrides
    files.write(places[1], places, {})
    second = _properties(places[1])
    assert second["node.id"] == "2"
    assert second["controller.quorum.voters"] == "1@127.0.0.1:30001,2@127.0.0.1:30002,3@127.0.0.1:30003"
    assert (second["offsets.topic.replication.factor"], second["min.insync.replicas"]) == ("3", "2")


def test_the_folder_of_its_log_is_written_as_java_reads_it(tmp_path: Path) -> None:
    folder = tmp_path / "z\u00fcrich 1\\a \U0001f600"
    files.write(place := files.Place(1, folder, 20_001, 30_001), [place], {})
    text = (folder / "server.properties").read_bytes().decode("latin-1")
    (written,) = [line.removeprefix("log.dirs=") for line in text.splitlines() if line.startswith("log.dirs=")]
    units = re.sub(r"\\u([0-9a-f]{4})", lambda found: chr(int(found[1], 16)), written)
    assert units.encode("utf-16", "surrogatepass").decode("utf-16") == str(folder.resolve() / "log")
    with pytest.raises(ConfigError, match="a comma separates folders"):
        files.write(files.Place(1, tmp_path / "a,b", 20_001, 30_001), [], {})

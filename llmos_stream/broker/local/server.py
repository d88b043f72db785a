"""A developer's Kafka: one real KRaft node on loopback, from Kafka's own jars."""

import contextlib
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from llmos_stream.broker.local import files, jars
from llmos_stream.broker.local.leash import Leashed
from llmos_stream.errors import BrokerError

_START_SECONDS = 60.0
_STOP_SECONDS = 20.0
_TAIL_LINES = 15
_WRONG = re.compile(r" (ERROR|FATAL) |Exception")
_CLASS_ARCHIVE = "classes.jsa"
_JAVA = 17
_READY = "Kafka Server started"
_PORTS = range(20_000, 32_000)  # below the ports that systems give to clients, one of which could take it meanwhile
_REMEDY = "install Java 17 and Maven, or set LLMOS_BROKER__BOOTSTRAP_SERVERS to a Kafka of yours"


class LocalKafka:
    """Start, stop, kill and restart it; each blocks until done. Also a context manager.

    `data_dir` keeps the log between runs; without one it lies in a temporary folder that goes at the end.
    `properties` adds to Kafka's `server.properties`.
    """

    def __init__(
        self, data_dir: Path | None = None, *, port: int | None = None, properties: Mapping[str, str] | None = None
    ) -> None:
        self._properties = dict(properties or {})
        self._kept = data_dir is not None
        self._folder = data_dir
        self._port = port
        self._controller_port: int | None = None
        self._process: Leashed | None = None

    @staticmethod
    def missing() -> str | None:
        """Why it cannot run here, or None when it can."""
        if os.name != "posix":
            return f"a local Kafka needs Linux or macOS; {_REMEDY}"
        if (version := _java_version()) < _JAVA:
            found = f"Java {version} is too old" if version else "Java is not installed"
            return f"{found}; {_REMEDY}"
        if not jars.fetched() and shutil.which("mvn") is None:
            return f"Maven is not installed, and Kafka has not been fetched before; {_REMEDY}"
        return None

    @property
    def bootstrap_servers(self) -> str:
        """HOST:PORT, once started; the same after a restart."""
        if self._port is None:
            raise ValueError("start it first")
        return f"127.0.0.1:{self._port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def start(self) -> Self:
        """Start and wait until it serves (about 5 s; the first time on a machine it is fetched first).

        Raises BrokerError that says what is missing, or shows the end of Kafka's own log.
        """
        if self.running:
            return self
        if (reason := self.missing()) is not None:
            raise BrokerError(reason)
        libraries = jars.fetch()
        fresh = self._folder is None
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="llmos-kafka-"))
        try:
            self._launch(self._prepare(libraries, self._folder))
        except BaseException:
            self._end(0)
            if fresh:
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """Let it shut down in order, or kill it after 20 s. A temporary folder goes."""
        self._end(_STOP_SECONDS)
        if not self._kept and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def kill(self) -> None:
        """SIGKILL, as in a crash; the data stays for `start`."""
        self._end(0)

    def restart(self) -> None:
        """Shut down in order and start again, same port, same data."""
        self._end(_STOP_SECONDS)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _prepare(self, libraries: Path, folder: Path) -> list[str]:
        """Write what Kafka reads at its start; the command that starts it."""
        if self._controller_port is None:
            ports = _free_ports(2)
            self._port, self._controller_port = self._port or ports[0], ports[1]
        files.write(folder, self._port or 0, self._controller_port, self._properties)
        java = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{libraries}/*"]
        java.append(f"-Dlog4j2.configurationFile={folder / 'log4j2.xml'}")
        archive = libraries / _CLASS_ARCHIVE
        if archive.is_file():
            java.append(f"-XX:SharedArchiveFile={archive}")  # classes loaded from there halve the start
        settings = str(folder / "server.properties")
        if not files.formatted(folder):
            command = [*java, "kafka.tools.StorageTool", "format", "-t", files.cluster_id(), "-c", settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BrokerError(f"Kafka could not prepare {folder}:\n{(done.stdout + done.stderr)[-2000:]}")
        if not archive.is_file():
            java.append(f"-XX:ArchiveClassesAtExit={folder / _CLASS_ARCHIVE}")
        return [*java, "-Xmx512m", "kafka.Kafka", settings]

    def _launch(self, command: list[str]) -> None:
        with self._log.open("wb") as out:
            self._process = Leashed(command, out)
        self._await_ready()

    def _await_ready(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while not (_READY in self._said() and self._accepts()):
            if not self.running:
                raise BrokerError(f"Kafka ended while starting:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"Kafka did not start within {_START_SECONDS:g} s:\n{self._tail()}")
            time.sleep(0.05)

    def _end(self, seconds: float) -> None:
        if self._process is not None:
            if self._process.end(seconds) and self._folder is not None:
                _keep_class_archive(jars.folder(), self._folder)
            self._process = None

    @property
    def _log(self) -> Path:
        if self._folder is None:
            raise ValueError("start it first")
        return self._folder / "kafka.log"

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def _tail(self) -> str:
        lines = self._said().splitlines()
        wrong = [line for line in lines if _WRONG.search(line)]
        return "\n".join((wrong or lines)[-_TAIL_LINES:])

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port or 0), timeout=1):
            return True
        return False


def _keep_class_archive(libraries: Path, folder: Path) -> None:
    """Put an archive that java has written beside the jars, for the next start."""
    written = folder / _CLASS_ARCHIVE
    if written.is_file():
        with tempfile.TemporaryDirectory(dir=libraries.parent, prefix=".archive-") as near:
            shutil.move(written, near)
            (Path(near) / _CLASS_ARCHIVE).replace(libraries / _CLASS_ARCHIVE)


def _java_version() -> int:
    """The major version of the java on the path, 0 when there is none that runs."""
    try:
        said = subprocess.run(["java", "-version"], capture_output=True, text=True, check=False).stderr  # noqa: S607
    except OSError:
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(found.group(1)) if found else 0


def _free_ports(count: int) -> list[int]:
    """Different ports on loopback that nobody listens on."""
    found: list[int] = []
    with contextlib.ExitStack() as held:
        for port in random.sample(_PORTS, len(_PORTS)):
            probe = held.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise BrokerError(f"fewer than {count} free ports between {_PORTS.start} and {_PORTS.stop}")

"""One Kafka process on loopback, from Kafka's own jars."""

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmos_stream.broker.local import files, jars
from llmos_stream.broker.local.leash import Leashed
from llmos_stream.errors import BrokerError

START_SECONDS = 60.0
_TAIL_LINES = 15
_WRONG = re.compile(r" (ERROR|FATAL) |Exception")
_CLASS_ARCHIVE = "classes.jsa"
_READY = "Kafka Server started"
_PAUSE_SECONDS = 0.05


class Node:
    """A node at its place; `launch` returns at once, `await_ready` when it serves."""

    def __init__(
        self, place: files.Place, nodes: Sequence[files.Place], properties: Mapping[str, str], heap_mb: int
    ) -> None:
        self.place = place
        self._nodes = nodes
        self._properties = properties
        self._heap_mb = heap_mb
        self._process: Leashed | None = None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.running

    def launch(self, libraries: Path, cluster_id: str) -> None:
        """Start the process; a folder that was no Kafka's before becomes one of `cluster_id`."""
        command = self._prepare(libraries, cluster_id)
        with self._log.open("wb") as out:
            self._process = Leashed(command, out)

    def await_ready(self) -> None:
        """Raises BrokerError with the end of Kafka's own log when it ends, or does not serve within a minute."""
        deadline = time.monotonic() + START_SECONDS
        while not (_READY in self._said() and self._accepts()):
            if not self.running:
                raise BrokerError(f"Kafka ended while starting:\n{self._tail()}")
            if time.monotonic() > deadline:
                raise BrokerError(f"Kafka did not start within {START_SECONDS:g} s:\n{self._tail()}")
            time.sleep(_PAUSE_SECONDS)

    def end(self, seconds: float) -> None:
        """Let it shut down in order for that long, then SIGKILL; 0 kills at once."""
        if self._process is not None:
            if self._process.end(seconds):
                _keep_class_archive(jars.folder(), self.place.folder)
            self._process = None

    def _prepare(self, libraries: Path, cluster_id: str) -> list[str]:
        """Write what Kafka reads at its start; the command that starts it."""
        folder = self.place.folder
        files.write(self.place, self._nodes, self._properties)
        java = ["java", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-cp", f"{libraries}/*"]
        java.append(f"-Dlog4j2.configurationFile={folder / 'log4j2.xml'}")
        archive = libraries / _CLASS_ARCHIVE
        if archive.is_file():
            java.append(f"-XX:SharedArchiveFile={archive}")  # classes loaded from there halve the start
        settings = str(folder / "server.properties")
        if not files.formatted(folder):
            command = [*java, "kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", settings]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BrokerError(f"Kafka could not prepare {folder}:\n{(done.stdout + done.stderr)[-2000:]}")
        if not archive.is_file():
            java.append(f"-XX:ArchiveClassesAtExit={folder / _CLASS_ARCHIVE}")
        return [*java, f"-Xmx{self._heap_mb}m", "kafka.Kafka", settings]

    @property
    def _log(self) -> Path:
        return self.place.folder / "kafka.log"

    def _said(self) -> str:
        return self._log.read_text(errors="replace")

    def _tail(self) -> str:
        lines = self._said().splitlines()
        wrong = [line for line in lines if _WRONG.search(line)]
        return "\n".join((wrong or lines)[-_TAIL_LINES:])

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.place.port), timeout=1):
            return True
        return False


def _keep_class_archive(libraries: Path, folder: Path) -> None:
    """Put an archive that java has written beside the jars, for the next start."""
    written = folder / _CLASS_ARCHIVE
    if written.is_file():
        with tempfile.TemporaryDirectory(dir=libraries.parent, prefix=".archive-") as near:
            shutil.move(written, near)
            (Path(near) / _CLASS_ARCHIVE).replace(libraries / _CLASS_ARCHIVE)

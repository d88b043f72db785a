"""A developer's Kafka: one real KRaft node on loopback."""

import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from llmos_stream.broker.local import files, jars, needs
from llmos_stream.broker.local.node import Node
from llmos_stream.errors import BrokerError

STOP_SECONDS = 20.0
_HEAP_MB = 512


class LocalKafka:
    """Start, stop, kill and restart it; each blocks until done. Also a context manager.

    `data_dir` keeps the log between runs; without one it lies in a temporary folder that goes at the end.
    `properties` adds to Kafka's `server.properties`.
    """

    def __init__(
        self, data_dir: Path | None = None, *, port: int | None = None, properties: Mapping[str, str] | None = None
    ) -> None:
        self._properties = dict(properties or {})
        self._data_dir = data_dir
        self._port = port
        self._node: Node | None = None

    @staticmethod
    def missing() -> str | None:
        """Why it cannot run here, or None when it can."""
        return needs.missing()

    @property
    def bootstrap_servers(self) -> str:
        """HOST:PORT, once started; the same after a restart."""
        if self._node is None:
            raise ValueError("start it first")
        return f"127.0.0.1:{self._node.place.port}"

    @property
    def running(self) -> bool:
        return self._node is not None and self._node.running

    def start(self) -> Self:
        """Start and wait until it serves (about 5 s; the first time on a machine it is fetched first).

        Raises BrokerError that says what is missing, or shows the end of Kafka's own log.
        """
        if self.running:
            return self
        if (reason := self.missing()) is not None:
            raise BrokerError(reason)
        libraries = jars.fetch()
        fresh = self._node is None
        node = self._node = self._node or self._placed()
        try:
            node.launch(libraries, files.cluster_id())
            node.await_ready()
        except BaseException:
            node.end(0)
            if fresh:
                self.stop()
            raise
        return self

    def stop(self) -> None:
        """Let it shut down in order, or kill it after 20 s. A temporary folder goes."""
        if self._node is not None:
            self._node.end(STOP_SECONDS)
            if self._data_dir is None:
                shutil.rmtree(self._node.place.folder, ignore_errors=True)
                self._node = None

    def kill(self) -> None:
        """SIGKILL, as in a crash; the data stays for `start`."""
        if self._node is not None:
            self._node.end(0)

    def restart(self) -> None:
        """Shut down in order and start again, same port, same data."""
        if self._node is not None:
            self._node.end(STOP_SECONDS)
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _placed(self) -> Node:
        port, controller_port = needs.free_ports(2)
        folder = self._data_dir or Path(tempfile.mkdtemp(prefix="llmos-kafka-"))
        place = files.Place(1, folder, self._port or port, controller_port)
        return Node(place, [place], self._properties, _HEAP_MB)

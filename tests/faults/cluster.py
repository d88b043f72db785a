"""Several real Kafka nodes on loopback that hold copies of one log: to see what happens when one of them dies."""

import contextlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from llmos_stream.broker.local import files, jars, needs
from llmos_stream.broker.local.node import Node
from llmos_stream.errors import BrokerError

_HEAP_MB = 300


class LocalCluster:
    """Nodes 1 to `nodes`, each a broker and a controller, in a temporary folder that goes at the end.

    Every record lies on all of them and counts as written once all but one have it. `start`, `kill` and `stop` block
    until done. Also a context manager. `properties` adds to the `server.properties` of each.
    """

    def __init__(self, nodes: int = 3, *, properties: Mapping[str, str] | None = None) -> None:
        self.numbers = range(1, nodes + 1)
        self._properties = dict(properties or {})
        self._cluster_id = files.cluster_id()
        self._folder: Path | None = None
        self._nodes: dict[int, Node] = {}

    @property
    def bootstrap_servers(self) -> str:
        """HOST:PORT of all nodes, joined by commas; the same after a restart of one."""
        return ",".join(f"127.0.0.1:{node.place.port}" for node in self._nodes.values())

    def running(self, number: int) -> bool:
        return number in self._nodes and self._nodes[number].running

    def start(self, number: int | None = None) -> Self:
        """Start one node, or all, and wait until they serve. One that runs is left alone.

        Raises BrokerError that says what is missing, or shows the end of Kafka's own log.
        """
        if (reason := needs.missing()) is not None:
            raise BrokerError(reason)
        libraries = jars.fetch()
        fresh = not self._nodes
        if fresh:
            self._nodes = self._placed()
        wanted = list(self._nodes) if number is None else [number]
        starting = [self._nodes[one] for one in wanted if not self.running(one)]
        try:
            # All before any is waited for: one alone has no majority and would never be ready.
            for node in starting:
                node.launch(libraries, self._cluster_id)
            for node in starting:
                node.await_ready()
        except BaseException:
            for node in starting:
                node.end(0)
            if fresh:
                self.stop()
            raise
        return self

    def kill(self, number: int) -> None:
        """SIGKILL one node, as in a crash; its data stays for `start`."""
        self._nodes[number].end(0)

    def stop(self) -> None:
        """Kill all that run and delete their data."""
        with contextlib.ExitStack() as endings:
            for node in self._nodes.values():
                endings.callback(node.end, 0)
        self._nodes = {}
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _placed(self) -> dict[int, Node]:
        self._folder = Path(tempfile.mkdtemp(prefix="llmos-kafka-"))
        ports = needs.free_ports(2 * len(self.numbers))
        places = [files.Place(number, self._folder / str(number), ports.pop(), ports.pop()) for number in self.numbers]
        return {place.number: Node(place, places, self._properties, _HEAP_MB) for place in places}

"""One Kafka for all workers of a test run: the first that needs it starts it, and stops it when the others are done."""

import fcntl
from pathlib import Path

from llmos_stream.broker import LocalKafka


class SharedKafka:
    """A worker's share. `folder` is the same for all workers of one run, and for nobody else."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._address = folder / "kafka.address"
        self._local: LocalKafka | None = None
        self._use = (folder / "kafka.users").open("a")

    def join(self) -> str:
        """HOST:PORT of the node, which runs until everybody who joined has left."""
        with (self._folder / "kafka.lock").open("a") as one_at_a_time:
            fcntl.flock(one_at_a_time, fcntl.LOCK_EX)
            fcntl.flock(self._use, fcntl.LOCK_SH)
            if not self._address.exists():
                self._local = LocalKafka().start()
                self._address.write_text(self._local.bootstrap_servers)
            return self._address.read_text()

    def leave(self) -> None:
        """Whoever started the node waits here for the others; who comes later starts another."""
        fcntl.flock(self._use, fcntl.LOCK_UN)
        if self._local is not None:
            fcntl.flock(self._use, fcntl.LOCK_EX)
            self._address.unlink()
            self._local.stop()
        self._use.close()

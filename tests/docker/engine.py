"""A Docker daemon of its own: on a socket of its own, with its data in one folder, and nothing of it stays."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import orjson

from llmos_stream.broker.local.leash import Leashed
from tests.docker.needs import DOCKER
from tests.docker.waiting import until

_START_SECONDS = 60.0
_STOP_SECONDS = 60.0
_COMPOSE = Path(sys.executable).parent / "docker-compose"


class Engine:
    """The daemon, once it answers. Whatever is done with it is bounded in time."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._environment = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder / 'docker.sock'}",
            "DOCKER_CONFIG": str(folder / "config"),
            "DOCKER_BUILDKIT": "1",
        }

    def docker(self, *arguments: object, seconds: float = 60.0, **streams: Any) -> str:
        """What `docker` prints, on both streams."""
        return self._run([DOCKER, *arguments], seconds, {}, **streams)

    def compose(self, *arguments: object, seconds: float = 120.0, environment: Mapping[str, str]) -> str:
        return self._run([_COMPOSE, *arguments], seconds, environment)

    def inspect(self, kind: str, name: str) -> dict[str, Any]:
        found: list[dict[str, Any]] = orjson.loads(self.docker(kind, "inspect", name))
        return found[0]

    def _run(self, command: list[object], seconds: float, more: Mapping[str, str], **streams: Any) -> str:
        done = subprocess.run(
            [str(word) for word in command],
            env={**self._environment, **more},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
            **streams,
        )
        said: str = done.stdout.decode(errors="replace")
        assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.returncode}\n{said[-6000:]}"
        return said

    def answers(self) -> bool:
        with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
            self.docker("info", seconds=10)
            return True
        return False


@contextlib.contextmanager
def engine(folder: Path) -> Iterator[Engine]:
    """A daemon in `folder` meanwhile; then its data are gone, whatever happened.

    It ends with this process, too. It changes nothing of this machine's network: no forwarding, no rules, no bridge
    until compose makes one. So containers reach each other and this machine, and nothing else.
    """
    command = [
        *("dockerd", "--host", f"unix://{folder / 'docker.sock'}", "--pidfile", str(folder / "dockerd.pid")),
        *("--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"), "--storage-driver", "overlay2"),
        *("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none"),
        *("--exec-opt", "native.cgroupdriver=cgroupfs", "--shutdown-timeout", "10"),
    ]
    found = Engine(folder)
    with (folder / "dockerd.log").open("wb") as log:
        daemon = Leashed(command, log)
        try:
            until(lambda: found.answers() or not daemon.running, "the daemon answers", _START_SECONDS)
            assert daemon.running, (folder / "dockerd.log").read_text()[-4000:]
            yield found
        finally:
            daemon.end(_STOP_SECONDS)
            _remove(folder)


def _remove(folder: Path) -> None:
    mounted = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for place in reversed([place for place in mounted if Path(place).is_relative_to(folder)]):
        subprocess.run(["umount", "--lazy", place], check=False, capture_output=True)  # noqa: S607
    shutil.rmtree(folder / "data", ignore_errors=True)
    shutil.rmtree(folder / "exec", ignore_errors=True)

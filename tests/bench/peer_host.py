"""Programs of others, beside which we measure ourselves: in a virtual environment of their own, and ended with all that
they have started.

An environment is made once. Whatever is started here runs in a session of its own and is ended here.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import psutil  # type: ignore[import-untyped]

from tests.bench.children import BenchmarkFailed, NotHere

_INSTALL_SECONDS = 1200.0
_GRACE_SECONDS = 10.0
_PAUSE_SECONDS = 0.1
_TAIL = 2000


def own_variables() -> dict[str, str]:
    """This process's environment without what is meant for this package alone."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("LLMOS_", "PYTHONPATH"))}


def environment(folder: Path, requirements: Sequence[str], name: str) -> Path:
    """The virtual environment in `folder`, made where it is not there. Raises NotHere where it cannot be made."""
    ready = folder / ".ready"
    wanted = json.dumps([sys.version_info[:2], *requirements])
    if ready.exists() and ready.read_text() == wanted:
        return folder
    python = str(folder / "bin" / "python")
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
    try:
        for command in ([sys.executable, "-m", "venv", str(folder)], install):
            subprocess.run(command, check=True, capture_output=True, text=True, timeout=_INSTALL_SECONDS)
    except subprocess.CalledProcessError as error:
        raise NotHere(f"{name} cannot be installed:\n{error.stderr.strip()[-_TAIL:]}") from None
    except (subprocess.TimeoutExpired, OSError) as error:
        raise NotHere(f"{name} cannot be installed: {error}") from None
    ready.write_text(wanted)
    return folder


class Started:
    """A process and what it has started, with its output in a file."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", output: Path) -> None:
        self.name = name
        self._process = process
        self._output = output

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    def require_running(self) -> None:
        if self.ended:
            raise BenchmarkFailed(f"{self.name} ended:\n{self.tail()}")

    def wait_for_port(self, port: int, deadline: float) -> None:
        while True:
            self.require_running()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1.0):
                return
            if time.monotonic() > deadline:
                raise BenchmarkFailed(f"{self.name} does not answer:\n{self.tail()}")
            time.sleep(_PAUSE_SECONDS)

    def peak_mib(self) -> float:
        """Of this process alone; 0 where the system does not tell."""
        status = Path(f"/proc/{self._process.pid}/status")
        lines = status.read_text().splitlines() if status.exists() else []
        return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0.0)

    def tail(self) -> str:
        return self._output.read_text(errors="replace")[-_TAIL:].strip()

    def end(self) -> None:
        """Ask, then kill; with all that it has started, which may be in groups of their own."""
        with contextlib.suppress(psutil.NoSuchProcess):
            family = psutil.Process(self._process.pid).children(recursive=True)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE_SECONDS)
            _, left = psutil.wait_procs(family, timeout=1.0)
            for process in left:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()


@contextmanager
def started(name: str, command: Sequence[str], folder: Path, variables: Mapping[str, str]) -> Iterator[Started]:
    """Run a command in `folder`, where its output goes to `name`.log."""
    output = folder / f"{name}.log"
    file: IO[bytes]
    with output.open("wb") as file:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(variables),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    found = Started(name, process, output)
    try:
        yield found
    finally:
        found.end()


def report_of(runner: Started, report: Path, deadline: float, others: Sequence[Started] = ()) -> dict[str, Any]:
    """What the `runner` writes as JSON, while `others` must live. Raises BenchmarkFailed where nothing comes of it."""
    while not report.exists():
        for process in others:
            process.require_running()
        if time.monotonic() > deadline:
            raise BenchmarkFailed(f"{runner.name} was not done in time:\n{runner.tail()}")
        if runner.ended and not report.exists():
            tails = "\n".join(process.tail() for process in (runner, *others))
            raise BenchmarkFailed(f"{runner.name} ended without a result:\n{tails}")
        time.sleep(_PAUSE_SECONDS)
    found: dict[str, Any] = json.loads(report.read_text())
    return found

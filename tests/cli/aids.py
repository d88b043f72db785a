"""How tests run the command: in this process, or as a process that can be watched, signalled and waited for."""

import contextlib
import json
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from llmos_stream.broker import Topics, connect
from llmos_stream.config import BrokerSettings
from llmos_stream.log import wait_for_topics
from llmos_stream.runtime import Shutdown
from llmos_stream.types import Event, EventKind
from llmos_stream.wire import load_event
from tests.forkserver import context, exec_module, run_module

PATIENCE_SECONDS = 90.0
"""How long a test waits for what must come; several processes that import torch on a busy machine take their time."""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        """The one JSON value on standard output."""
        assert self.out.count("\n") == 1, self
        return json.loads(self.out)

    def error(self) -> str:
        """The one line that an error is told in."""
        assert self.err.startswith("error: "), self
        assert self.err.count("\n") == 1, self
        assert self.out == "", self
        return self.err.removeprefix("error: ").rstrip("\n")


Run = Callable[..., Done]


class Running:
    """A command in a process of its own: forked from one that has everything imported, or a `new` interpreter."""

    def __init__(
        self, arguments: Iterable[object], folder: Path, module: str = "llmos_stream", *, new: bool = False
    ) -> None:
        forked = context()
        self._out, out = forked.Pipe(duplex=False)
        self._err, err = forked.Pipe(duplex=False)
        given = (module, [str(argument) for argument in arguments], folder, dict(os.environ), out, err)
        self._process = forked.Process(target=exec_module if new else run_module, args=given)
        self._process.start()
        out.close()
        err.close()
        self._read = {"out": b"", "err": b""}

    def line(self, stream: str, wanted: str = "") -> str:
        """The next line of `out` or `err` that contains `wanted`."""
        pipe = self._out if stream == "out" else self._err
        deadline = time.monotonic() + PATIENCE_SECONDS
        line = b""
        while (left := deadline - time.monotonic()) > 0:
            if not select.select([pipe], [], [], left)[0]:
                continue
            byte = os.read(pipe.fileno(), 1)
            assert byte, f"no line with {wanted!r} in {stream}: {self._read}"
            self._read[stream] += byte
            line += byte
            if byte == b"\n":
                if wanted in line.decode():
                    return line.decode().rstrip("\n")
                line = b""
        raise AssertionError(f"no line with {wanted!r} in {stream} after {PATIENCE_SECONDS:g} s: {self._read}")

    def signal(self, number: signal.Signals) -> None:
        os.kill(self._pid, number)

    def children(self) -> dict[str, psutil.Process]:
        return children_of(psutil.Process(self._pid))

    def wait(self) -> Done:
        """What it left behind, once it has ended."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        pipes = {self._out: "out", self._err: "err"}
        while pipes:
            readable = select.select(list(pipes), [], [], max(0.0, deadline - time.monotonic()))[0]
            assert readable, f"it has not ended after {PATIENCE_SECONDS:g} s: {self._read}"
            for pipe in readable:
                found = os.read(pipe.fileno(), 1 << 16)
                self._read[pipes[pipe]] += found
                if not found:
                    del pipes[pipe]
        self._process.join(max(0.0, deadline - time.monotonic()))
        assert self._process.exitcode is not None, f"it has not ended after {PATIENCE_SECONDS:g} s: {self._read}"
        return Done(self._process.exitcode, self._read["out"].decode(), self._read["err"].decode())

    def end(self) -> None:
        """Leave nothing behind, whatever the test came to."""
        if self._process.is_alive():
            for child in psutil.Process(self._pid).children(recursive=True):
                child.kill()
            self._process.kill()
        self._process.join()
        self._out.close()
        self._err.close()

    @property
    def _pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid


Start = Callable[..., Running]


def children_of(process: psutil.Process) -> dict[str, psutil.Process]:
    """The commands it has started and that run, by the client's name or else the command's."""
    found = {}
    for child in process.children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            command = child.cmdline()
            if command[1:3] == ["-m", "llmos_stream"]:
                name = child.environ()["LLMOS_CLIENT__ID"] if command[3] == "client" else command[3]
                found[name] = child
    return found


async def wait_for_event(
    bootstrap_servers: str, federation: str, kind: EventKind, wanted: Callable[[Event], bool] = lambda _: True
) -> Event:
    """The first event of a kind that is `wanted`, once it is in the log."""
    topics = Topics(federation)
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with connect(BrokerSettings(bootstrap_servers=bootstrap_servers)) as broker:
        await wait_for_topics(broker, topics.names, Shutdown())
        topic = topics.evaluations if kind is EventKind.EVALUATION else topics.events
        async with broker.reader([topic], start="earliest") as reader:
            while time.monotonic() < deadline:
                for record in await reader.poll(0.2):
                    event = load_event(record.value or b"")
                    if event.kind is kind and wanted(event):
                        return event
    raise AssertionError(f"no {kind} in {federation} after {PATIENCE_SECONDS:g} s")

"""Roles as real processes. A server that has everything imported forks them, so that one costs milliseconds."""

import asyncio
import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import orjson
import torch

from llmos_stream.broker import connect
from llmos_stream.runtime import ExitCode, Shutdown, configure_logging, run_process
from tests.faults.drivers import drive, journal_of
from tests.faults.host import Ended, Ending, Running
from tests.faults.injector import InProcess, Notice, Tell
from tests.faults.plan import Fault, Plan, Point
from tests.forkserver import context

_TAIL_BYTES = 600


class InProcesses:
    """Every role a process. `ports` says, by role, where its connections to a port really go."""

    def __init__(
        self, plan: Plan, federation: str, servers: str, folder: Path, ports: Mapping[str, Mapping[int, int]]
    ) -> None:
        self._plan, self._federation, self._servers, self._folder, self._ports = (
            plan,
            federation,
            servers,
            folder,
            ports,
        )
        self._context = context()

    def start(self, role: str, points: Sequence[Point], tell: Tell) -> Running:
        ours, theirs = self._context.Pipe(duplex=False)
        log = self._folder / role / "log"
        log.parent.mkdir(parents=True, exist_ok=True)
        routes = dict(next((ports for struck, ports in self._ports.items() if role.startswith(struck)), {}))
        arguments = (role, self._plan, self._federation, self._servers, self._folder, tuple(points), routes, theirs)
        process = self._context.Process(target=_main, args=arguments, name=role, daemon=True)
        process.start()
        theirs.close()
        return _Process(process, ours, tell, log)


class _Process:
    """See `Running`."""

    def __init__(self, process: ForkServerProcess, notices: Connection, tell: Tell, log: Path) -> None:
        self._process, self._notices, self._tell, self._log = process, notices, tell, log
        self._asked = False
        self._loop = asyncio.get_running_loop()
        self._heard: asyncio.Future[None] = self._loop.create_future()
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_reader(notices.fileno(), self._hear)
        self._loop.add_reader(process.sentinel, self._go)

    def _hear(self) -> None:
        try:
            self._tell(_loaded(self._notices.recv_bytes()))
        except EOFError:
            self._loop.remove_reader(self._notices.fileno())
            self._notices.close()
            self._heard.set_result(None)

    def _go(self) -> None:
        self._loop.remove_reader(self._process.sentinel)
        self._gone.set_result(None)

    async def ended(self) -> Ending:
        await asyncio.shield(self._heard)  # all that it had to say
        await asyncio.shield(self._gone)
        self._process.join()  # not in a thread: starting another one may look at this one too
        match self._process.exitcode:
            case 0:
                return Ending(Ended.DONE)
            case ExitCode.FENCED:
                return Ending(Ended.FENCED)
            case code if code == -signal.SIGKILL:
                return Ending(Ended.KILLED)
            case code if code == -signal.SIGTERM and self._asked:
                return Ending(Ended.DONE)  # it was too young to listen
            case code:
                return Ending(Ended.FAILED, f"exit status {code}: {self._log.read_bytes()[-_TAIL_BYTES:].decode()}")

    def ask_to_stop(self) -> None:
        self._asked = True
        self._signal(signal.SIGTERM)

    def wake(self) -> None:
        self._signal(signal.SIGCONT)

    async def destroy(self) -> None:
        self._signal(signal.SIGKILL)
        await self.ended()

    def _signal(self, number: signal.Signals) -> None:
        if self._process.is_alive() and self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, number)


def _main(
    role: str,
    plan: Plan,
    federation: str,
    servers: str,
    folder: Path,
    points: tuple[Point, ...],
    routes: dict[int, int],
    notices: Connection,
) -> None:
    with (folder / role / "log").open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    settings = plan.settings(federation, servers, folder)
    torch.set_num_threads(1)
    configure_logging(settings.runtime)
    if routes:
        _reroute(routes)
    injector = InProcess(points, lambda notice: notices.send_bytes(_dumped(notice)), journal_of(folder, role))

    async def run(shutdown: Shutdown) -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        # Nothing outlives the harness, however that ends.
        asyncio.get_running_loop().add_reader(parent.sentinel, os._exit, ExitCode.FORCED)
        await drive(role, connect(settings.broker), injector, settings, plan, folder, shutdown)

    sys.exit(run_process(run))


def _reroute(routes: Mapping[int, int]) -> None:
    """Send this process's connections to a port elsewhere. Kafka tells its clients its own address, not a proxy's."""
    direct = asyncio.BaseEventLoop.create_connection

    async def create_connection(loop: asyncio.BaseEventLoop, factory: Any, host: str, port: int, **options: Any) -> Any:
        return await direct(loop, factory, host, routes.get(port, port), **options)

    setattr(asyncio.BaseEventLoop, "create_connection", create_connection)  # noqa: B010


def _dumped(notice: Notice) -> bytes:
    return orjson.dumps(notice)


def _loaded(data: bytes) -> Notice:
    value = orjson.loads(data)
    point = value["point"]
    if point is not None:
        point = Point(Fault(point["fault"]), point["role"], point["at"], point["extra"])
    return Notice(value["what"], point, value["version"])

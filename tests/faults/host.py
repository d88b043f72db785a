"""Where the roles of a run live: what the harness needs of it, and the one that keeps them in this process."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique
from pathlib import Path
from typing import Protocol

from llmos_stream.broker import Broker
from llmos_stream.config import Settings
from llmos_stream.errors import Fenced, LlmosError
from llmos_stream.runtime import Shutdown
from tests.faults.drivers import drive, journal_of
from tests.faults.injector import Crash, InTask, Tell
from tests.faults.plan import Plan, Point


@unique
class Ended(StrEnum):
    DONE = "done"
    KILLED = "killed"
    FENCED = "fenced"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Ending:
    """How a role has ended, and why, in words, where it has failed."""

    how: Ended
    why: str = ""


class Running(Protocol):
    """A role that was started."""

    async def ended(self) -> Ending:
        """Wait for its end."""

    def ask_to_stop(self) -> None:
        """As Ctrl-C does."""

    def wake(self) -> None:
        """Let one that hangs go on."""

    async def destroy(self) -> None:
        """End it at once, if it still runs."""


class Host(Protocol):
    """Starts the roles of one run."""

    def start(self, role: str, points: Sequence[Point], tell: Tell) -> Running: ...


class InTasks:
    """All roles in this process, on one broker."""

    def __init__(self, plan: Plan, broker: Broker, settings: Settings, folder: Path) -> None:
        self._plan, self._broker, self._settings, self._folder = plan, broker, settings, folder
        self.kept: list[InTask] = []

    def start(self, role: str, points: Sequence[Point], tell: Tell) -> Running:
        injector = InTask(points, tell, journal_of(self._folder, role))
        self.kept.append(injector)
        shutdown = Shutdown()
        work = drive(role, self._broker, injector, self._settings, self._plan, self._folder, shutdown)
        return _Task(asyncio.create_task(work, name=role), injector, shutdown)


class _Task:
    """See `Running`."""

    def __init__(self, task: "asyncio.Task[None]", injector: InTask, shutdown: Shutdown) -> None:
        self._task, self._injector, self._shutdown = task, injector, shutdown

    async def ended(self) -> Ending:
        await asyncio.wait([self._task])
        if self._task.cancelled():
            return Ending(Ended.KILLED)
        match self._task.exception():
            case None:
                return Ending(Ended.DONE)
            case Crash():
                return Ending(Ended.KILLED)
            case Fenced():
                return Ending(Ended.FENCED)
            case LlmosError() as error:
                return Ending(Ended.FAILED, f"{type(error).__name__}: {error}")
            case error:
                raise error

    def ask_to_stop(self) -> None:
        self._shutdown.request()

    def wake(self) -> None:
        self._injector.wake()

    async def destroy(self) -> None:
        if not self._task.done():
            self._injector.dead = True
            self._injector.wake()
            self._task.cancel()
            await asyncio.wait([self._task])
            if not self._task.cancelled():
                self._task.exception()  # looked at, or asyncio complains

"""When a fault strikes one role, and how: a real process is killed or stopped, a role in this process comes to a halt.

The hook in `faulty` reports what the role is doing; here it is compared with the role's points.
"""

import asyncio
import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from llmos_stream.testing import FaultyBroker
from tests.faults.journal import Journal
from tests.faults.plan import OF_CLIENT, Fault, Point


class Crash(BaseException):
    """A role's end by a fault, where it shares this process. Nothing of the package catches it."""


@dataclass(frozen=True, slots=True)
class Notice:
    """What a role tells the harness: `struck` by one of its points, or that it has `committed` a version."""

    what: str
    point: Point | None = None
    version: int = -1


Tell = Callable[[Notice], None]


class Injector(ABC):
    """The faults of one run of one role."""

    def __init__(self, points: Sequence[Point], tell: Tell, journal: Journal | None = None) -> None:
        self._points = list(points)
        self._tell = tell
        self._journal = journal
        self._versions = 0
        self._in_version = False
        self._sends = 0
        self.broker: FaultyBroker | None = None  # it has what a killed role left open: collecting it would tidy up

    @abstractmethod
    async def gate(self) -> None:
        """Called before every use of the broker."""

    @abstractmethod
    async def halt(self, point: Point) -> None:
        """Do what the fault does to the role."""

    async def strike(self, point: Point) -> None:
        self._points.remove(point)
        self._tell(Notice("struck", point))
        await self.halt(point)

    async def transaction_begins(self) -> None:
        self._in_version, self._sends = False, 0
        await self._strike_if(Fault.KILL_BEFORE)

    async def version_is_sent(self) -> None:
        """The transaction that is open turns out to be a version's."""
        self._in_version = True
        await self._strike_if(Fault.HANG, extra=0)

    async def sent_one(self) -> None:
        if self._in_version:
            self._sends += 1
            await self._strike_if(Fault.KILL_IN, extra=self._sends)

    async def commit_begins(self) -> None:
        if not self._in_version:
            return
        await self._strike_if(Fault.HANG, extra=1)
        for point in self._now(Fault.KILL_IN):
            if point.extra < 0:
                self.strike_later(point, -point.extra / 1000)
            else:  # there were fewer sends than that
                await self.strike(point)

    async def transaction_ended(self, version: int | None) -> None:
        if version is None:
            return
        self._tell(Notice("committed", version=version))
        await self._strike_if(Fault.KILL_AFTER)
        await self._strike_if(Fault.HANG, extra=2)
        self._versions += 1

    @abstractmethod
    def strike_later(self, point: Point, seconds: float) -> None:
        """Strike while the commit is under way, or just after it."""

    def begin_update(self, number: int) -> None:
        if self._journal is not None:
            self._journal.write("sending", number)

    def of_update(self, number: int) -> Point | None:
        """What strikes this update, if anything does."""
        return next((point for point in self._points if point.fault in OF_CLIENT and point.at == number), None)

    def done(self, point: Point) -> None:
        """A fault that the hook itself has made."""
        self._points.remove(point)
        self._tell(Notice("struck", point))

    def _now(self, fault: Fault) -> list[Point]:
        return [point for point in self._points if point.fault is fault and point.at == self._versions + 1]

    async def _strike_if(self, fault: Fault, extra: int | None = None) -> None:
        for point in self._now(fault):
            if extra is None or point.extra == extra:
                await self.strike(point)


class InProcess(Injector):
    """Strikes this very process with signals that no code can answer."""

    async def gate(self) -> None:
        """A process that was struck does not come here."""

    async def halt(self, point: Point) -> None:
        os.kill(os.getpid(), signal.SIGSTOP if point.fault is Fault.HANG else signal.SIGKILL)

    def strike_later(self, point: Point, seconds: float) -> None:
        def strike() -> None:
            self._tell(Notice("struck", point))
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.get_running_loop().call_later(seconds, strike)


class InTask(Injector):
    """Strikes a role that shares this process: from then on the broker is out of its reach."""

    def __init__(self, points: Sequence[Point], tell: Tell, journal: Journal | None = None) -> None:
        super().__init__(points, tell, journal)
        self.dead = False
        self._awake = asyncio.Event()
        self._awake.set()

    async def gate(self) -> None:
        await self._awake.wait()
        if self.dead:
            raise Crash

    async def halt(self, point: Point) -> None:
        if point.fault is Fault.HANG:
            self._awake.clear()
        else:
            self.dead = True
        await self.gate()

    def strike_later(self, point: Point, seconds: float) -> None:
        """Nothing happens inside a commit here: it is struck right before."""
        self._points.remove(point)
        self._tell(Notice("struck", point))
        self.dead = True
        raise Crash

    def wake(self) -> None:
        self._awake.set()

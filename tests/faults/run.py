"""One run: the roles are started, struck, started again, and stopped when every update has been counted."""

import asyncio
import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from time import monotonic

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import TopicMissing
from llmos_stream.runtime import Shutdown
from llmos_stream.runtime.retry import keep_trying
from tests.faults.host import Ended, Host, Running
from tests.faults.injector import Notice
from tests.faults.net import Net
from tests.faults.plan import AGGREGATOR, KILLS, OF_THE_NET, Fault, Plan, Point
from tests.federation import read_versions

LIMIT_SECONDS = 100.0
"""A run is over long before; a machine that has much else to do is given time."""
_STALL_SECONDS = 25.0
_SILENCE_SECONDS = 60.0
_MOST_STARTS = 12
_LOOK_SECONDS = 0.1


@dataclass(slots=True)
class Outcome:
    """What has happened, apart from what is in the log."""

    struck: list[Point] = field(default_factory=list)
    surprises: list[str] = field(default_factory=list)
    endings: list[tuple[str, Ended]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def kills(self) -> int:
        return sum(point.fault in KILLS | {Fault.RESTART_BROKER} for point in self.struck)


class Run:
    """Runs a plan on a host. The log stays as it is at the end, for the judge."""

    def __init__(self, plan: Plan, host: Host, net: Net | None, broker: Broker, settings: Settings) -> None:
        self._plan, self._host, self._net, self._broker, self._settings = plan, host, net, broker, settings
        self._outcome = Outcome()
        self._running: dict[str, Running] = {}
        self._points = [point for point in plan.points if point.fault not in OF_THE_NET]
        self._committed = -1
        self._hung: dict[str, int] = {}
        self._news = asyncio.Condition()
        self._over = False
        self._tellers: set[asyncio.Task[None]] = set()

    async def run(self, limit_seconds: float = LIMIT_SECONDS) -> Outcome:
        begun = monotonic()
        try:
            async with asyncio.timeout(limit_seconds):
                await self._run()
        except TimeoutError:
            self._outcome.surprises.append(f"not over after {limit_seconds:g} s")
        finally:
            self._over = True
            for running in list(self._running.values()):
                await running.destroy()
            self._outcome.seconds = monotonic() - begun
        return self._outcome

    async def _run(self) -> None:
        aggregators = [f"{AGGREGATOR}-0", *([f"{AGGREGATOR}-1"] if self._plan.standby else [])]
        async with asyncio.TaskGroup() as group:
            strikes = [group.create_task(self._strike(point)) for point in self._plan.points]
            keepers = [group.create_task(self._keep(aggregators[0]))]
            if len(aggregators) > 1:
                # The first one leads, so that what is planned for the leader strikes it.
                await self._until(lambda: self._committed >= 0 or bool(self._hung))
                keepers += [group.create_task(self._keep(role)) for role in aggregators[1:]]
            clients = [group.create_task(self._keep(name)) for name in self._plan.names]
            await asyncio.gather(*clients)
            counted = await self._all_counted()
            for strike in strikes:
                strike.cancel()
            await self._until(lambda: not self._hung)
            self._over = True
            if not (self._plan.ends and counted):
                for role in aggregators:
                    self._running[role].ask_to_stop()
            await asyncio.gather(*keepers)

    async def _keep(self, role: str) -> None:
        """Start it, and again when it was killed or fenced, until it is done."""
        for _ in range(_MOST_STARTS):
            points = [point for point in self._points if role.startswith(point.role)]
            mine = points if role != f"{AGGREGATOR}-1" else []
            running = self._host.start(role, mine, lambda notice: self._take(role, notice))
            self._running[role] = running
            ending = await running.ended()
            was_hung = self._hung.pop(role, None) is not None
            await self._tell()
            self._outcome.endings.append((role, ending.how))
            # Another point may have killed it as soon as it woke, and a run that has ended needs nobody fenced.
            fine = {Ended.FENCED, Ended.KILLED, *([Ended.DONE] if self._plan.ends else [])}
            if was_hung and ending.how not in fine:
                self._outcome.surprises.append(f"{role} hung and was not fenced when it came back: {ending.how}")
            if ending.how is Ended.FAILED:
                self._outcome.surprises.append(f"{role}: {ending.why}")
            if ending.how is Ended.DONE or self._over:
                return
            if ending.how is Ended.FENCED and not self._plan.standby:
                self._outcome.surprises.append(f"{role} was fenced, but there is no other")
        self._outcome.surprises.append(f"{role} was started {_MOST_STARTS} times")

    def _take(self, role: str, notice: Notice) -> None:
        if notice.what == "committed":
            self._committed = max(self._committed, notice.version)
        elif notice.point is not None:
            self._outcome.struck.append(notice.point)
            self._points.remove(notice.point)
            if notice.point.fault is Fault.HANG:
                self._hung[role] = self._committed
        task = asyncio.get_running_loop().create_task(self._tell())
        self._tellers.add(task)
        task.add_done_callback(self._tellers.discard)

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    async def _until(self, true: Callable[[], bool]) -> None:
        async with self._news:
            await self._news.wait_for(true)

    async def _strike(self, point: Point) -> None:
        """What the harness itself does for a point."""
        if point.fault is Fault.HANG:
            await self._until(lambda: bool(self._hung))
            role, seen = next(iter(self._hung.items()))
            # It may have committed the one it hung in, so only the next but one must be the standby's.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_STALL_SECONDS):
                    await self._until(lambda: self._committed > seen + (point.extra < 2))
            self._running[role].wake()
        elif point.fault in OF_THE_NET and self._net is not None:
            await self._until(lambda: self._committed >= point.at)
            self._outcome.struck.append(point)
            await self._net.strike(point)

    async def _all_counted(self) -> bool:
        """Wait until the log's versions hold every update. False when none has come for long."""
        topics = Topics(self._settings.federation.name)

        async def follow() -> bool:
            counted: set[tuple[str, int]] = set()
            last = monotonic()
            async with self._broker.reader([topics.models], start="earliest") as reader:
                while len(counted) < self._plan.total and monotonic() - last < _SILENCE_SECONDS:
                    before = len(counted)
                    async for version in read_versions(reader, self._settings.wire):
                        counted |= {(item.client_id, item.sequence) for item in version.head.manifest}
                    if len(counted) > before:
                        last = monotonic()
                    else:
                        async with self._news:
                            with contextlib.suppress(TimeoutError):
                                await asyncio.wait_for(self._news.wait(), _LOOK_SECONDS)
            return len(counted) >= self._plan.total

        try:
            return bool(await keep_trying(follow, Shutdown(), "reading again"))
        except TopicMissing:
            return False

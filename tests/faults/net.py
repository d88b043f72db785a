"""Faults between the roles and the log: a broker that is killed and started again, a network that is cut."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

from llmos_stream.broker import LocalKafka
from tests.faults.plan import Fault, Plan, Point
from tests.faults.proxy import Proxy


class Net:
    """The ways of one run to its Kafka. `ports` by role leads through its proxies."""

    def __init__(self, kill_and_start: Callable[[], None], proxies: Mapping[str, Mapping[int, Proxy]]) -> None:
        self._kill_and_start = kill_and_start
        self._proxies = proxies
        self.ports = {role: {target: proxy.port for target, proxy in ways.items()} for role, ways in proxies.items()}

    async def strike(self, point: Point) -> None:
        if point.fault is Fault.RESTART_BROKER:
            await asyncio.to_thread(self._kill_and_start)
            return
        ways = self._proxies[point.role].values()
        for way in ways:
            if point.at % 2:
                way.break_off()
            else:
                way.hold_up()
        await passed(point.extra / 1000)
        for way in ways:
            way.restore()


async def passed(seconds: float) -> None:
    """Let that much time pass: a fault that lasts is a matter of time, not of a condition."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


@asynccontextmanager
async def net_of(plan: Plan, servers: str, kill_and_start: Callable[[], None]) -> AsyncIterator[Net]:
    """A proxy for each role that is to be cut off, to each of the servers."""
    targets = [int(server.rpartition(":")[2]) for server in servers.split(",")]
    async with AsyncExitStack() as stack:
        proxies = {
            point.role: {target: await stack.enter_async_context(Proxy(target)) for target in targets}
            for point in plan.points
            if point.fault is Fault.CUT_NETWORK
        }
        yield Net(kill_and_start, proxies)


def kill_and_start(kafka: LocalKafka) -> None:
    kafka.kill()
    kafka.start()

"""The aggregator whose event loop is watched, or its client: `python -m tests.bench.loop_child aggregator | client`.

Both are composed as the command line composes them; settings come from the environment.
"""

import asyncio
import faulthandler
import sys
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, NamedTuple, Self

import torch

from llmos_stream.broker import Broker, Topics, connect
from llmos_stream.codec import Layout
from llmos_stream.config import Settings, load
from llmos_stream.log.federation import Federation
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import Client, ClientState, client_id_of, state_folder
from llmos_stream.runtime import Offload, Shutdown, configure_logging, run_all
from llmos_stream.training import Task, load_task, use_threads
from llmos_stream.training.shared_model import Trained
from tests.bench.children import BenchmarkFailed, serve
from tests.bench.pipe_rows import percentile

TICK_SECONDS = 0.001
_DELTA_SCALE = 1e-3
_FIRST_VERSION_SECONDS = 300.0


class Probe:
    """How late the running loop calls back what is due every millisecond.

    While the loop does not answer, the ticks that it misses come due too: each is as late as it is, and none is left
    out. So the percentiles are those of an event that comes at any time.
    """

    def __init__(self, stacks_after: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._late: list[float] = []
        self._stacks_after = stacks_after
        self._next: asyncio.TimerHandle
        self._tick()

    def take(self) -> list[float]:
        """Seconds by which each tick since the last call was late."""
        taken, self._late = self._late, []
        return taken

    def _tick(self) -> None:
        now = self._loop.time()
        while self._due <= now:
            self._late.append(now - self._due)
            self._due += TICK_SECONDS
        if self._stacks_after is not None:
            # A watchdog without the GIL: it writes where every thread is unless the next tick comes first.
            faulthandler.dump_traceback_later(self._stacks_after)
        self._next = self._loop.call_at(self._due, self._tick)

    def stop(self) -> None:
        self._next.cancel()


class Lateness(NamedTuple):
    """Of ticks, in milliseconds."""

    ticks: int
    p50_ms: float
    p99_ms: float
    max_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Self:
        """Raises BenchmarkFailed where there are none."""
        if not seconds:
            raise BenchmarkFailed("no tick was due")
        late = [1e3 * value for value in seconds]
        return cls(len(late), percentile(late, 0.5), percentile(late, 0.99), max(late))


async def aggregate(broker: Broker, settings: Settings, task: Task, offload: Offload, stacks: float | None) -> None:
    """Answers `lateness`: that of the ticks since the last answer."""
    shutdown = Shutdown()
    probe = Probe(stacks)

    async def answer(_: dict[str, Any]) -> Mapping[str, object]:
        return Lateness.of(probe.take())._asdict()

    async def until_told() -> None:
        await serve(answer)
        shutdown.request()

    await run_all(until_told(), run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown))


async def publish(broker: Broker, settings: Settings, task: Task, offload: Offload) -> None:
    """Answers `publish`: sends noise, `updates` times, as fast as it can. The first waits for version 0."""
    layout = (await offload.run(initial_of, task, settings)).layout
    delta = torch.empty(layout.numel).normal_(std=_DELTA_SCALE, generator=torch.Generator().manual_seed(0))
    client: Client | None = None
    async with AsyncExitStack() as stack:

        async def answer(command: dict[str, Any]) -> Mapping[str, object]:
            nonlocal client
            if client is None:
                client = await _client(stack, broker, settings, layout, offload)
            for _ in range(command["updates"]):
                await client.publish(Trained(delta.clone(), 0, 1, {}, 0.0))
            return {}

        await serve(answer)


async def _client(
    stack: AsyncExitStack, broker: Broker, settings: Settings, layout: Layout, offload: Offload
) -> Client:
    """A client that has read version 0."""
    shutdown, client_id = Shutdown(), client_id_of(settings.client)
    topics = Topics(settings.federation.name)
    federation = Federation(broker, topics, settings.wire, offload, shutdown)
    await federation.wait_for_topics(*federation.topics.names)
    state = stack.enter_context(
        ClientState(client_id, state_folder(settings.client, settings.federation.name, client_id))
    )
    client = await stack.enter_async_context(Client(federation, client_id, layout, settings.codec, state))
    if await client.newest(None, _FIRST_VERSION_SECONDS) is None:
        raise BenchmarkFailed(f"no version 0 after {_FIRST_VERSION_SECONDS:g} s")
    return client


async def _run(role: str, stacks: float | None) -> None:
    settings = load()
    configure_logging(settings.runtime)
    use_threads(settings.runtime)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connect(settings.broker))
        offload = await stack.enter_async_context(Offload(settings.runtime.workers))
        task = load_task(settings.task, settings.client)
        if role == "client":
            await publish(broker, settings, task, offload)
        else:
            await aggregate(broker, settings, task, offload, stacks)


if __name__ == "__main__":
    asyncio.run(_run(sys.argv[1], float(sys.argv[2]) if len(sys.argv) > 2 else None))

"""The aggregator or a client of a measured federation: `python -m tests.bench.pipe_child aggregator | client DELTA`.

Both are composed as the command line composes them; settings come from the environment. A client publishes what is in
the file DELTA again and again, so that the pipe is measured and not the training.
"""

import asyncio
import sys
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import torch
from torch import Tensor

from llmos_stream.broker import Broker, Topics, connect
from llmos_stream.config import Settings, load
from llmos_stream.log.federation import Federation
from llmos_stream.log.versions import Version
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import Client, ClientState, client_id_of, state_folder
from llmos_stream.runtime import Offload, Shutdown, configure_logging, run_all
from llmos_stream.training import Task, load_task, use_threads
from llmos_stream.training.shared_model import Trained
from tests.bench.children import BenchmarkFailed, serve
from tests.bench.usage import peak_mib, resident_mib

_VERSION_SECONDS = 300.0


async def aggregate(broker: Broker, settings: Settings, task: Task, offload: Offload) -> None:
    """Answers `usage` (CPU seconds so far, of the event loop's thread too) and `memory`."""
    shutdown = Shutdown()

    async def answer(command: dict[str, Any]) -> Mapping[str, object]:
        if command["do"] == "memory":
            return _memory()
        return {"cpu_seconds": time.process_time(), "loop_cpu_seconds": time.thread_time()}

    async def until_told() -> None:
        await serve(answer)
        shutdown.request()

    await run_all(until_told(), run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, shutdown))


class Publisher:
    """A client that publishes one delta over and over."""

    def __init__(self, client: Client, settings: Settings, delta: Tensor) -> None:
        self._client = client
        self._settings = settings
        self._delta = delta
        self.base: Version | None = None
        """The version that it holds."""

    async def answer(self, command: dict[str, Any]) -> Mapping[str, object]:
        """Commands and what they take.

        `publish` (`updates`, one after the other; with `fetch` each on the newest version), `catch_up` (`version`) and
        `memory`.
        """
        if command["do"] == "memory":
            return _memory()
        if command["do"] == "catch_up":
            await self._reach(command["version"])
            return {}
        cpu, begun = time.process_time(), time.time()
        updates = [await self._update(fetch=command["fetch"]) for _ in range(command["updates"])]
        return {
            "begun": begun,
            "ended": time.time(),
            "cpu_seconds": time.process_time() - cpu,
            "updates": updates,
        }

    async def _update(self, *, fetch: bool) -> dict[str, object]:
        base = await self._first()
        begun = time.time()
        published = await self._client.publish(Trained(self._delta.clone(), base.head.number, 1, {}, 0.0))
        update: dict[str, object] = {
            "client_id": published.head.client_id,
            "sequence": published.head.sequence,
            "begun": begun,
            "published": time.time(),
            "sent_bytes": published.sent_bytes,
        }
        if fetch:
            update |= await self._fetch(base)
        return update

    async def _first(self) -> Version:
        """The version that this client holds."""
        return self.base or await self._reach(0)

    async def _reach(self, number: int) -> Version:
        """Hold `number` or a later one: clients that begin a round on different versions get out of step.

        One that is behind need not wait for the others. It is done before them, and they wait for its update.
        """
        while self.base is None or self.base.head.number < number:
            held = None if self.base is None else self.base.head.number
            newest = await self._client.newest(held, _VERSION_SECONDS)
            if newest is None:
                raise BenchmarkFailed(f"version {number} did not come within {_VERSION_SECONDS:g} s; it has {held}")
            self.base = newest
        return self.base

    async def _fetch(self, base: Version) -> dict[str, object]:
        cpu = time.process_time()
        newest = await self._client.newest(base.head.number, self._settings.client.wait_seconds)
        if newest is None:
            return {}
        self.base = newest
        return {"version": newest.head.number, "fetched": time.time(), "fetch_cpu_seconds": time.process_time() - cpu}


async def publish(broker: Broker, settings: Settings, task: Task, offload: Offload, path: str) -> None:
    """Takes part as `Publisher`."""
    shutdown = Shutdown()
    topics = Topics(settings.federation.name)
    federation = Federation(broker, topics, settings.wire, offload, shutdown)
    await federation.wait_for_topics(*federation.topics.names)
    client_id = client_id_of(settings.client)
    layout = (await offload.run(initial_of, task, settings)).layout
    delta = torch.from_file(path, shared=False, size=layout.numel)
    with ClientState(client_id, state_folder(settings.client, settings.federation.name, client_id)) as state:
        async with Client(federation, client_id, layout, settings.codec, state) as client:
            await serve(Publisher(client, settings, delta).answer)


def _memory() -> Mapping[str, object]:
    """MiB resident now, and at the peak since the start."""
    return {"resident_mib": resident_mib(), "peak_mib": peak_mib()}


async def _run(role: str, *arguments: str) -> None:
    settings = load()
    configure_logging(settings.runtime)
    use_threads(settings.runtime)
    async with AsyncExitStack() as stack:
        broker = await stack.enter_async_context(connect(settings.broker))
        offload = await stack.enter_async_context(Offload(settings.runtime.workers))
        task = load_task(settings.task, settings.client)
        if role == "aggregator":
            await aggregate(broker, settings, task, offload)
        else:
            await publish(broker, settings, task, offload, *arguments)


if __name__ == "__main__":
    asyncio.run(_run(*sys.argv[1:]))

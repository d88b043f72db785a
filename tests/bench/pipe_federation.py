"""A federation with a process for each role, and one phase of it measured from outside."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.config import Settings, to_environment
from llmos_stream.log import wait_for_topics
from llmos_stream.log.scan import read_heads
from llmos_stream.runtime import Shutdown, run_all, run_while
from llmos_stream.types import Event, EventKind, VersionHead
from llmos_stream.wire import load_event
from tests.bench.children import BenchmarkFailed, Child, end_all

_MODULE = "tests.bench.pipe_child"
_POLL_SECONDS = 0.5

Identity = tuple[str, int]
"""Client and sequence."""


class Fetch(NamedTuple):
    """One version fetched by one client: from when it was written to the log until it was decoded."""

    seconds: float
    cpu_seconds: float


class Memory(NamedTuple):
    """Resident memory of the aggregator, and of the client that has the most."""

    aggregator_mib: float
    client_mib: float


class Seen(NamedTuple):
    """A version as a reader of events sees it: when, when it was written (by Kafka's clock), and its payload's bytes.

    Times are in seconds since the epoch.
    """

    time: float
    written: float
    size: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One phase. Bytes and CPU seconds are totals; latencies and times until the log has it are one for each update."""

    updates: int
    versions: int
    seconds: float
    update_bytes: int
    version_bytes: int
    latencies: list[float]
    publishes: list[float]
    fetches: list[Fetch]
    client_cpu_seconds: float
    aggregator_cpu_seconds: float
    aggregator_loop_cpu_seconds: float
    broker_cpu_seconds: float | None


class Federation:
    """An aggregator and its clients, all running. `broker_cpu` tells the CPU seconds of Kafka so far, if known."""

    def __init__(
        self, aggregator: Child, clients: Sequence[Child], events: Reader, broker_cpu: Callable[[], float | None]
    ) -> None:
        self._aggregator = aggregator
        self._clients = clients
        self._events = events
        self._broker_cpu = broker_cpu
        self._version_of: dict[Identity, int] = {}
        self._seen: dict[int, Seen] = {}
        self.sent: list[Identity] = []
        self.update_bytes = 0
        """Of the update sent last."""

    async def measure(self, each: int, *, fetch: bool, progress: Callable[[int], object]) -> Sample:
        """Let every client publish `each` updates, with `fetch` each on the newest version, until all are folded.

        `progress` is told how many of them are folded. Raises BenchmarkFailed when one is refused or a process ends.
        """
        if fetch:
            await self.catch_up()
        before = len(self._version_of)
        aggregator, broker = await self._aggregator.ask("usage"), self._broker_cpu()
        work = run_all(
            self._follow(before + each * len(self._clients), lambda folded: progress(folded - before)),
            *(client.ask("publish", updates=each, fetch=fetch) for client in self._clients),
        )
        _, *answers = await run_while(work, *(child.watch() for child in (self._aggregator, *self._clients)))
        after, broker_after = await self._aggregator.ask("usage"), self._broker_cpu()
        updates = [update for answer in answers for update in answer["updates"]]
        sent = [(update["client_id"], update["sequence"]) for update in updates]
        numbers = {self._version_of[identity] for identity in sent}
        applied = [self._seen[self._version_of[identity]].time for identity in sent]
        self.sent += sent
        self.update_bytes = updates[-1]["sent_bytes"]
        # A round trip ends when every client has the last version, one way when it can be read.
        ended = max(*applied, *(answer["ended"] for answer in answers)) if fetch else max(applied)
        return Sample(
            updates=len(updates),
            versions=len(numbers),
            seconds=ended - min(answer["begun"] for answer in answers),
            update_bytes=sum(update["sent_bytes"] for update in updates),
            version_bytes=sum(self._seen[number].size for number in numbers),
            latencies=[time - update["begun"] for time, update in zip(applied, updates, strict=True)],
            publishes=[update["published"] - update["begun"] for update in updates],
            fetches=[
                Fetch(update["fetched"] - self._seen[update["version"]].written, update["fetch_cpu_seconds"])
                for update in updates
                if "version" in update
            ],
            client_cpu_seconds=sum(answer["cpu_seconds"] for answer in answers),
            aggregator_cpu_seconds=after["cpu_seconds"] - aggregator["cpu_seconds"],
            aggregator_loop_cpu_seconds=after["loop_cpu_seconds"] - aggregator["loop_cpu_seconds"],
            broker_cpu_seconds=None if broker is None or broker_after is None else broker_after - broker,
        )

    async def catch_up(self) -> None:
        """Let every client fetch the newest version that was seen."""
        version = max(self._seen, default=0)
        work = run_all(*(client.ask("catch_up", version=version) for client in self._clients))
        await run_while(work, *(child.watch() for child in (self._aggregator, *self._clients)))

    async def memory(self) -> tuple[Memory, Memory]:
        """Now, and at its peak so far."""
        aggregator, *clients = [await child.ask("memory") for child in (self._aggregator, *self._clients)]
        now, peak = (
            Memory(aggregator[name], max(client[name] for client in clients)) for name in ("resident_mib", "peak_mib")
        )
        return now, peak

    async def _follow(self, count: int, progress: Callable[[int], object]) -> None:
        """Read events until `count` updates are folded into versions that can be read."""
        while len(self._version_of) < count or not self._seen.keys() >= set(self._version_of.values()):
            records = await self._events.poll(_POLL_SECONDS)
            now = time.time()
            for record in records:
                self._take(load_event(record.value or b""), now, record.timestamp_ms / 1000)
            progress(len(self._version_of))

    def _take(self, event: Event, now: float, written: float) -> None:
        data: Mapping[str, Any] = event.data
        match event.kind:
            case EventKind.UPDATE_FOLDED:
                self._version_of[data["client_id"], data["sequence"]] = data["version"]
            case EventKind.VERSION_PUBLISHED:
                self._seen[data["version"]] = Seen(now, written, data["payload_bytes"])
            case EventKind.UPDATE_REJECTED | EventKind.UPDATE_DUPLICATE:
                raise BenchmarkFailed(f"an update of {data['client_id']} was not folded: {event.kind} {dict(data)}")


@asynccontextmanager
async def federation(
    broker: Broker,
    settings: Settings,
    clients: int,
    folder: Path,
    broker_cpu: Callable[[], float | None],
    *,
    delta: Path,
    warm: bool = True,
) -> AsyncIterator[Federation]:
    """Start the processes and let each fetch version 0; `warm`, each publishes once, too. All publish `delta`.

    Ends them and deletes the topics afterwards.
    """
    topics = Topics(settings.federation.name)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(broker.delete_topics, topics.names)
        children: list[Child] = []
        stack.push_async_callback(end_all, children)
        environment = to_environment(settings)
        children.append(await Child.start("aggregator", _MODULE, "aggregator", folder=folder, environment=environment))
        for shard in range(clients):
            name = f"client-{shard}"
            more = {"id": name, "shard": shard, "state_dir": folder / name}
            own = settings.model_copy(update={"client": settings.client.model_copy(update=more)})
            children.append(
                await Child.start(
                    name, _MODULE, "client", str(delta), folder=folder, environment=environment | to_environment(own)
                )
            )
        waiting = wait_for_topics(broker, topics.names, Shutdown())
        await run_while(waiting, *(child.watch() for child in children))
        events = await stack.enter_async_context(broker.reader([topics.events], start="earliest"))
        measured = Federation(children[0], children[1:], events, broker_cpu)
        await measured.catch_up()
        if warm:
            await measured.measure(1, fetch=True, progress=lambda _: None)
        yield measured


async def idle_memory(broker: Broker, settings: Settings, folder: Path, delta: Path) -> Memory:
    """What the processes have resident after one update."""
    async with federation(broker, settings, 1, folder, lambda: None, delta=delta) as running:
        now, _ = await running.memory()
    return now


async def versions_in(broker: Broker, settings: Settings) -> list[VersionHead]:
    """The heads of all versions in the log."""
    async with broker.reader([Topics(settings.federation.name).models], start="earliest", check_crcs=False) as reader:
        return [logged.head async for logged in read_heads(reader, VersionHead)]


def check_counts(sent: Collection[Identity], versions: Sequence[VersionHead]) -> dict[str, int]:
    """What the manifests count of what was sent. Raises BenchmarkFailed unless it is each once, in one chain."""
    folded = [(item.client_id, item.sequence) for version in versions for item in version.manifest]
    counts = {
        "sent": len(sent),
        "folded": len(folded),
        "lost": len(set(sent) - set(folded)),
        "repeated": len(folded) - len(set(folded)),
        "unknown": len(set(folded) - set(sent)),
        "versions": len(versions),
    }
    chain = [(version.number, version.parent) for version in versions]
    unbroken = chain == [(number, number - 1 if number else None) for number in range(len(versions))]
    if counts["lost"] or counts["repeated"] or counts["unknown"] or not unbroken:
        raise BenchmarkFailed(f"the versions do not count every update once: {counts}, versions {chain}")
    return counts

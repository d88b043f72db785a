"""What a federation's log holds, waited for: versions, events, quarantined updates, raw records."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Self, TypeVar

import orjson

from llmos_stream.broker import Reader, Record
from llmos_stream.errors import Rejected
from llmos_stream.log.federation import Federation
from llmos_stream.log.replica import Follower, take_message
from llmos_stream.log.stream import MessageStream, RecordStream, go_on, value_of
from llmos_stream.log.versions import Version, version_assembler
from llmos_stream.runtime import run_while
from llmos_stream.types import Event, EventKind
from llmos_stream.wire import load_event

T = TypeVar("T")

PATIENCE_SECONDS = 60.0
_POLL_SECONDS = 1.0
_LOOK_SECONDS = 0.005


async def until(condition: Callable[[], bool | Awaitable[bool]], seconds: float = PATIENCE_SECONDS) -> None:
    """Let the event loop go on until the condition holds: for what has no event to wait for.

    Raises:
        TimeoutError: It did not come to hold in time.
    """
    try:
        async with asyncio.timeout(seconds):
            await _hold(condition)
    except TimeoutError:
        raise TimeoutError(f"the condition did not hold within {seconds:g} s") from None


async def _hold(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    while not (await held if isawaitable(held := condition()) else held):  # noqa: ASYNC110 (no event to wait for)
        await asyncio.sleep(_LOOK_SECONDS)


class WatchedLog:
    """A federation's log under the eyes of a test. Open it with `async with`.

    Its methods wait until what they are asked for is there, at most `patience_seconds`, and raise TimeoutError
    otherwise. When `task`, which is to write it, fails meanwhile, they raise its error. Everything read is kept.
    """

    def __init__(
        self,
        federation: Federation,
        task: "asyncio.Task[Any] | None" = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self.federation = federation
        self.broker = federation.broker
        self.topics = federation.topics
        self._task = task
        self._patience_seconds = patience_seconds
        self._stack = AsyncExitStack()
        self._reading = asyncio.Lock()
        self._streams: dict[str, RecordStream] = {}
        self._records: dict[str, list[Record]] = {}
        self._events: list[Event] = []
        self._parsed_records = 0
        self._models: MessageStream | None = None
        self._follower = Follower()
        self._versions: dict[int, Version] = {}

    async def ready(self) -> None:
        """Until the federation has its topics."""
        await self._wait(
            self.federation.wait_for_topics(*self.topics.names), lambda: f"the topics of {self.federation.name}"
        )

    async def read(self, topic: str, count: int = 1) -> list[Record]:
        """The first `count` records of a topic."""
        await self._wait(
            self._read(topic, lambda records: len(records) >= count),
            lambda: f"{count} records of {topic}: it has {len(self._records.get(topic, []))}",
        )
        return self._records[topic][:count]

    async def events(self, kind: str, count: int = 1) -> list[Event]:
        """The first `count` events of a kind."""
        if kind == EventKind.EVALUATION:
            return [load_event(value_of(record)) for record in await self.read(self.topics.evaluations, count)]
        found = await self.events_until(lambda events: sum(event.kind == kind for event in events) >= count)
        return [event for event in found if event.kind == kind][:count]

    async def events_until(self, enough: Callable[[list[Event]], bool]) -> list[Event]:
        """All events of `<f>.events`, as soon as they are enough."""
        await self._wait(
            self._read(self.topics.events, lambda records: enough(self._parsed(records))),
            lambda: f"events: there are {_count(self._events)}",
        )
        return list(self._events)

    async def quarantined(self, count: int = 1) -> list[dict[str, Any]]:
        """What `<f>.quarantine` says of the first `count` updates that were refused (see `wire.quarantine`)."""
        return [orjson.loads(value_of(record)) for record in await self.read(self.topics.quarantine, count)]

    async def version(self, number: int) -> Version:
        """A version, decoded."""
        return await self._wait(
            self._version(number), lambda: f"version {number}: the log has {sorted(self._versions) or 'none'}"
        )

    async def until(self, condition: Callable[[], bool | Awaitable[bool]]) -> None:
        """As the function `until`, unless the task fails before."""
        await self._wait(_hold(condition), lambda: "a condition that did not come to hold")

    async def _wait(self, work: Coroutine[Any, Any, T], what: Callable[[], str]) -> T:
        limit = asyncio.timeout(self._patience_seconds)
        try:
            async with limit:
                return await run_while(work, self._failure())
        except TimeoutError:
            if not limit.expired():
                raise
            raise TimeoutError(f"waited {self._patience_seconds:g} s for {what()}") from None

    async def _failure(self) -> None:
        if self._task is not None:
            await asyncio.wait([self._task])
            if not self._task.cancelled() and (error := self._task.exception()) is not None:
                raise error

    async def _read(self, topic: str, enough: Callable[[list[Record]], bool]) -> None:
        async with self._reading:
            if topic not in self._streams:
                self._streams[topic] = RecordStream(await self._open(topic), on_gap=go_on("records"))
            records = self._records.setdefault(topic, [])
            while not enough(records):
                records += await self._streams[topic].poll(_POLL_SECONDS)

    async def _version(self, number: int) -> Version:
        async with self._reading:
            if self._models is None:
                reader, assembler = await self._open(self.topics.models), version_assembler(self.federation.wire)
                self._models = MessageStream(reader, assembler, on_gap=go_on("versions"))
            while number not in self._versions:
                message = await self._models.next(_POLL_SECONDS)
                with suppress(Rejected):  # a stranger's: every reader passes it over
                    if message is not None and (version := take_message(self._follower, message)) is not None:
                        kept = replace(version, weights=version.weights.clone())
                        self._versions[version.head.number] = kept
            return self._versions[number]

    async def _open(self, topic: str) -> Reader:
        await self.federation.wait_for_topics(topic)
        return await self._stack.enter_async_context(self.federation.reader(topic))

    def _parsed(self, records: list[Record]) -> list[Event]:
        for record in records[self._parsed_records :]:
            with suppress(Rejected):
                self._events.append(load_event(value_of(record)))
        self._parsed_records = len(records)
        return self._events

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()


def _count(events: list[Event]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in Counter(event.kind for event in events).items()) or "none"

"""Where a role works: one federation's log, with the threads, the stop and the clock that it works with."""

from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

from llmos_stream.broker import Broker, Reader, Topics
from llmos_stream.broker.ports import Start
from llmos_stream.config import WireSettings
from llmos_stream.core import SequenceWindow
from llmos_stream.log.control import ControlView, open_control
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.log.replica import Replica
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.runtime import SYSTEM_CLOCK, Clock, Offload, Shutdown
from llmos_stream.runtime.retry import GRACE_SECONDS, keep_trying, until_stop
from llmos_stream.types import Event, EventKind

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Federation:
    """What every role needs of its surroundings. It owns nothing: whoever made the parts closes them."""

    broker: Broker
    topics: Topics
    wire: WireSettings
    offload: Offload
    shutdown: Shutdown
    clock: Clock = SYSTEM_CLOCK

    @property
    def name(self) -> str:
        """The federation's name, which is the prefix of its topics."""
        return self.topics.federation

    async def wait_for_topics(self, *needed: str) -> bool:
        """Wait until the aggregator has made these topics. False when a stop came and some are still missing."""
        return await wait_for_topics(self.broker, needed, self.shutdown)

    def reader(self, topic: str, start: Start = "earliest", *, check_crcs: bool = True) -> Reader:
        """A reader of one topic; open it with `async with`. See `broker.Broker.reader`."""
        return self.broker.reader([topic], start=start, check_crcs=check_crcs)

    def control(self, *, sequences_of: str | None = None) -> AbstractAsyncContextManager[ControlView]:
        """The control topic, read to its present end."""
        return open_control(
            self.broker, self.topics, sequences_of=sequences_of, check_window=SequenceWindow.load, clock=self.clock
        )

    def producer(self, longest_pause_seconds: float = 10.0) -> RetryingProducer:
        """What writes through broker trouble; open it with `async with`."""
        return RetryingProducer(self.broker, self.shutdown, longest_pause_seconds)

    def replica(self, reader: Reader, *, shares: bool = False) -> Replica:
        """The newest version that is asked for, read through a reader of the versions. For `shares` see `Follower`."""
        return Replica(reader, self.wire, self.offload, self.clock, shares=shares)

    def event(self, kind: EventKind, role: str, **data: object) -> Event:
        """What happened now, as an event says it."""
        return Event(kind, role, self.clock.time_ms(), data)

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` off the event loop."""
        return await self.offload.run(function, *args, **kwargs)

    async def wait(self, seconds: float) -> bool:
        """Let time pass, unless a stop is asked for. Returns whether it has been."""
        return await self.shutdown.wait(seconds, self.clock)

    async def keep_trying(self, work: Callable[[], Awaitable[T]], what: str) -> T | None:
        """Call `work` through broker trouble until it returns; None at a stop. See `runtime.retry.keep_trying`."""
        return await keep_trying(work, self.shutdown, what, clock=self.clock)

    async def until_stop(self, work: Coroutine[Any, Any, T], grace_seconds: float = GRACE_SECONDS) -> T:
        """Await `work`; a stop leaves it a few seconds more. See `runtime.retry.until_stop`."""
        return await until_stop(work, self.shutdown, grace_seconds)

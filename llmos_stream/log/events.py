"""`<f>.events` and `<f>.evaluations`: how a role writes to them, and how they are followed."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import AsyncExitStack
from dataclasses import asdict

from llmos_stream.broker import Broker, Producer, Reader, TopicPartition, Topics
from llmos_stream.log.control import ControlView, open_control
from llmos_stream.log.event_check import EventCheck
from llmos_stream.log.stream import EventStream, event_key, foreign, go_on
from llmos_stream.log.topics import missing_topics, wait_for_topics
from llmos_stream.runtime import SYSTEM_CLOCK, Shutdown
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.telemetry.event_metrics import OWN
from llmos_stream.types import Contribution, Event, TopicKind, VersionHead
from llmos_stream.wire import dump_event

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


async def emit(producer: Producer, topic: str, entry: Event) -> None:
    """Write one event, keyed by its client where it has one and by the role otherwise, and count it."""
    await producer.send(topic, dump_event(entry), key=event_key(entry))
    OWN.observe(entry)


def folded_data(item: Contribution, version: int) -> dict[str, object]:
    """What the manifest of a version says of a contribution, as an event says it."""
    data = asdict(item) | {"version": version}
    del data["payload_digest"]
    if item.steps is None:
        del data["steps"]
    return data


def published_data(head: VersionHead) -> dict[str, object]:
    """What a version says of itself, as an event says it."""
    return {
        "version": head.number,
        "parent": head.parent,
        "contributions": len(head.manifest),
        "payload_bytes": head.payload_size,
    }


async def read_events(broker: Broker, topics: Topics) -> AsyncIterator[Event]:
    """Every event from the oldest kept to the present end that can be of this run. Raises TopicMissing."""
    check = EventCheck(topics, SYSTEM_CLOCK)
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(await _reader(broker, topics))
        stream, ends = EventStream(reader, on_gap=go_on("events")), await reader.end_offsets()
        # After the end is known: so it knows of every version before that.
        control = await stack.enter_async_context(open_control(broker, topics))
        while any([await reader.position(at) < end for at, end in ends.items()]):
            for event in check.take(await stream.events(_POLL_SECONDS), control):
                yield event
        await control.catch_up()
        for event in check.rest(control):
            yield event


async def follow_events(
    broker: Broker,
    topics: Topics,
    take: Callable[[Event], object],
    shutdown: Shutdown,
    *,
    counted: Collection[TopicKind] = (),
    after: Callable[[], Awaitable[object]] | None = None,
) -> None:
    """Give every event that can be of this run, from the oldest kept, to `take`, each once; until a stop is asked for.

    What is in the log when the stop comes is still handed on. While the broker does not answer it keeps trying.
    `counted`: topics that this process reads anyway, for another purpose, and whose foreign records it counts there.
    `after` is awaited each time that events were read, or none came for a moment: meanwhile no more are read.
    """
    positions: dict[TopicPartition, int] = {}

    def pass_over(topic: str, offset: int, why: str) -> None:
        if topic.rpartition(".")[2] not in counted:
            foreign(topic, offset, why)

    check = EventCheck(topics, SYSTEM_CLOCK, pass_over)

    async def follow() -> None:
        if await wait_for_topics(broker, [topics.events, topics.control], shutdown):
            while not await once():
                logger.info("evaluations come by %s from now on", topics.evaluations)

    async def once() -> bool:
        """Follow until a stop (True), or until the aggregator has made a topic that was not there."""
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(await until_stop(_reader(broker, topics), shutdown))
            reader = await until_stop(opening, shutdown)
            stream = EventStream(reader, on_gap=go_on("events"), on_foreign=pass_over)
            is_old = len(reader.partitions) == 1
            for at, offset in positions.items():
                stream.seek(at, offset)
            opening = stack.enter_async_context(broker.reader([topics.control], start="earliest"))
            control = ControlView(await until_stop(opening, shutdown), is_second=TopicKind.CONTROL in counted)
            await until_stop(control.catch_up(), shutdown)
            while not (shutdown.requested and await until_stop(stream.at_end(), shutdown)):
                if is_old and control.evaluations_moved is not None:
                    is_old = False
                    if not await until_stop(missing_topics(broker, [topics.evaluations]), shutdown):
                        return False
                    logger.warning("no evaluations: this user may not see %s (Describe, Read)", topics.evaluations)
                found = await stream.events(_POLL_SECONDS)
                await control.poll(0)
                for event in check.take(found, control):
                    take(event)
                positions.update(stream.positions)
                if after is not None:
                    await after()
            await until_stop(control.catch_up(), shutdown)
            for event in check.rest(control):
                take(event)
        return True

    await keep_trying(follow, shutdown, "following the events again")


async def _reader(broker: Broker, topics: Topics) -> Reader:
    """A reader of all events. The log of an older release has no topic of evaluations."""
    is_old = await missing_topics(broker, [topics.evaluations])
    there = [topics.events] if is_old else [topics.events, topics.evaluations]
    return broker.reader(there, start="earliest")

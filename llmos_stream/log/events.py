"""`<f>.events`: how a role writes to it, and how it is followed."""

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack

from llmos_stream.broker import Broker, Producer, TopicPartition, Topics
from llmos_stream.log.stream import EventStream, go_on
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.runtime import Shutdown
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.telemetry.event_metrics import OWN
from llmos_stream.types import Event
from llmos_stream.wire import dump_event

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


async def emit(producer: Producer, topic: str, entry: Event) -> None:
    """Write one event, keyed by its client where it has one and by the role otherwise, and count it."""
    await producer.send(topic, dump_event(entry), key=event_key(entry))
    OWN.observe(entry)


def event_key(entry: Event) -> bytes:
    """The key of an event's record: its client, or the role."""
    client = entry.data.get("client_id")
    return (client if isinstance(client, str) else entry.role).encode()


async def read_events(broker: Broker, topics: Topics) -> AsyncIterator[Event]:
    """Every event from the oldest kept to the present end. Raises TopicMissing."""
    async with broker.reader([topics.events], start="earliest") as reader:
        stream = EventStream(reader, on_gap=go_on("events"))
        ends = await reader.end_offsets()
        while any([await reader.position(at) < end for at, end in ends.items()]):
            for event in await stream.events(_POLL_SECONDS):
                yield event


async def follow_events(broker: Broker, topics: Topics, take: Callable[[Event], object], shutdown: Shutdown) -> None:
    """Give every event of the log, from the oldest kept, to `take`, each once; until a stop is asked for.

    What is in the log when the stop comes is still handed on. While the broker does not answer it keeps trying.
    """
    positions: dict[TopicPartition, int] = {}

    async def follow() -> None:
        if not await wait_for_topics(broker, topics, shutdown):
            return
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(broker.reader([topics.events], start="earliest"))
            stream = EventStream(await until_stop(opening, shutdown), on_gap=go_on("events"))
            for at, offset in positions.items():
                stream.seek(at, offset)
            while not (shutdown.requested and await until_stop(stream.at_end(), shutdown)):
                for event in await stream.events(_POLL_SECONDS):
                    take(event)
                positions.update(stream.positions)

    await keep_trying(follow, shutdown, "following the events again")

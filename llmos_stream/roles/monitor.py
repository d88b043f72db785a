"""The monitor: follows `<f>.events` and hands each event on."""

import logging
from collections.abc import Callable

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import Rejected
from llmos_stream.roles.client import wait_for_topics
from llmos_stream.runtime import Shutdown
from llmos_stream.types import Event
from llmos_stream.wire import load_event

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


async def follow_events(
    broker: Broker, settings: Settings, take: Callable[[Event], object], shutdown: Shutdown
) -> None:
    """Give every event of the log, from the oldest kept, to `take`; until a stop is asked for.

    What is in the log when the stop comes is still handed on.
    """
    topics = Topics(settings.federation.name)
    if not await wait_for_topics(broker, topics, shutdown):
        return
    async with broker.reader([topics.events], start="earliest") as reader:
        while not shutdown.requested or await reader.lag() > 0:
            for record in await reader.poll(_POLL_SECONDS):
                try:
                    take(load_event(record.value or b""))
                except Rejected as error:
                    log.warning("ignored an event that cannot be read, at offset %d: %s", record.offset, error.detail)

"""The monitor: follows `<f>.events` and hands each event on."""

import logging
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack
from time import monotonic

from llmos_stream.broker import Broker, Record, TopicPartition, Topics
from llmos_stream.config import Settings
from llmos_stream.errors import OffsetGone, Rejected
from llmos_stream.log.topics import wait_for_topics
from llmos_stream.runtime import Shutdown
from llmos_stream.runtime.retry import QUIET_SECONDS, keep_trying, until_stop
from llmos_stream.types import Event
from llmos_stream.wire import load_event

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.25


async def follow_events(
    broker: Broker, settings: Settings, take: Callable[[Event], object], shutdown: Shutdown
) -> None:
    """Give every event of the log, from the oldest kept, to `take`, each once; until a stop is asked for.

    What is in the log when the stop comes is still handed on. While the broker does not answer it keeps trying.
    """
    following = _Following(broker, Topics(settings.federation.name), take, shutdown)
    await keep_trying(following.follow, shutdown, "following the events again")


class _Following:
    """What is kept while the broker is lost and found again."""

    def __init__(self, broker: Broker, topics: Topics, take: Callable[[Event], object], shutdown: Shutdown) -> None:
        self._broker = broker
        self._topics = topics
        self._take = take
        self._shutdown = shutdown
        self._next: dict[TopicPartition, int] = {}

    async def follow(self) -> None:
        """Raises BrokerUnavailable when the broker does not answer: call it again then."""
        if not await wait_for_topics(self._broker, self._topics, self._shutdown):
            return
        async with AsyncExitStack() as stack:
            opening = stack.enter_async_context(self._broker.reader([self._topics.events], start="earliest"))
            reader = await until_stop(opening, self._shutdown)
            for at, offset in self._next.items():
                reader.seek(at, offset)
            heard = monotonic()
            while not self._shutdown.requested or await until_stop(reader.lag(), self._shutdown) > 0:
                try:
                    records = await reader.poll(_POLL_SECONDS)
                except OffsetGone as error:
                    logger.warning("retention deleted events before they were read (%s)", error)
                    await until_stop(reader.seek_to_beginning(), self._shutdown)
                    continue
                self._hand_on(records)
                heard = monotonic() if records else heard
                if monotonic() - heard > QUIET_SECONDS:
                    await until_stop(reader.lag(), self._shutdown)  # polls of a broker that is gone find nothing
                    heard = monotonic()

    def _hand_on(self, records: Iterable[Record]) -> None:
        for record in records:
            self._next[TopicPartition(record.topic, record.partition)] = record.offset + 1
            try:
                event = load_event(record.value or b"")
            except Rejected as error:
                logger.warning("ignored an event that cannot be read, at offset %d: %s", record.offset, error.detail)
                continue
            self._take(event)

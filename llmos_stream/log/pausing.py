"""Pausing a federation, and letting it go on: a word in `<f>.control` that holds until the other one is said.

While it is paused clients begin no update, and the aggregator folds none and publishes nothing: it takes effect
between two updates, and what has been read by then waits in the aggregator. All else that was under way waits in the
log, for as long as that keeps it (`topics.updates_retention_hours`). Everybody stays: readers go on reading, the leader
goes on leading.
"""

import math

from llmos_stream.broker import Broker, Topics
from llmos_stream.errors import FederationFinished
from llmos_stream.log.control import open_control
from llmos_stream.runtime import SYSTEM_CLOCK
from llmos_stream.wire.control import PAUSED, dump_paused

_HOUR_MS = 3_600_000


async def set_paused(broker: Broker, topics: Topics, paused: bool) -> None:
    """Say so to everybody. Raises TopicMissing, and FederationFinished where nobody is left to hear it."""
    async with open_control(broker, topics) as control:
        if control.finished is not None:
            raise FederationFinished(
                f"federation {topics.federation} has ended: {control.finished.reason}; "
                "llmos-stream aggregator --resume goes on with it"
            )
    async with broker.producer() as producer:
        await producer.send(topics.control, dump_paused(paused, SYSTEM_CLOCK.time_ms()), key=PAUSED)


async def updates_kept_hours(broker: Broker, topics: Topics) -> float | None:
    """How long updates wait in the log at most, by their topic: infinity where age alone deletes none.

    None where it does not say, so that the broker's own default holds.
    """
    name = topics.updates
    config = next((topic.config for topic in await broker.list_topics(name) if topic.name == name), {})
    if (retention_ms := config.get("retention.ms")) is None:
        return None
    return int(retention_ms) / _HOUR_MS if int(retention_ms) >= 0 else math.inf

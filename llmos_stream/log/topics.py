"""Waiting for a federation's topics."""

import logging

from llmos_stream.broker import Broker, Topics
from llmos_stream.runtime import BROKER, Shutdown, met
from llmos_stream.runtime.retry import until_stop

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.05
_LAST_LOOK_SECONDS = 2.0


async def missing_topics(broker: Broker, topics: Topics) -> set[str]:
    """Which of the federation's topics are not there."""
    return set(topics.names) - {topic.name for topic in await broker.list_topics(f"{topics.federation}.")}


async def wait_for_topics(broker: Broker, topics: Topics, shutdown: Shutdown, *, evaluations: bool = False) -> bool:
    """Wait until the federation's aggregator has made its topics. False when a stop came and there are still none.

    That of the evaluations is only waited for where it is asked for: one of an older release makes none.
    """
    pause, is_new = _FIRST_LOOK_SECONDS, True
    while True:
        missing = await until_stop(missing_topics(broker, topics), shutdown)
        met(BROKER)
        if not missing or (missing == {topics.evaluations} and not evaluations):
            return True
        if shutdown.requested:
            return False
        if pause == _LAST_LOOK_SECONDS:
            say = logger.warning if is_new else logger.info
            is_new = False
            if missing == {topics.evaluations}:
                why = f"{topics.evaluations} is missing, which an aggregator of this release makes; update that first"
            else:
                why = "it has no topics yet"
            say("waiting for federation %s: %s, or this user may not see them (Describe)", topics.federation, why)
        await shutdown.wait(pause)
        pause = min(2 * pause, _LAST_LOOK_SECONDS)

"""Waiting for a federation's topics."""

import logging

from llmos_stream.broker import Broker, Topics
from llmos_stream.runtime import BROKER, Shutdown, met
from llmos_stream.runtime.retry import until_stop

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.05
_LAST_LOOK_SECONDS = 2.0


async def topics_exist(broker: Broker, topics: Topics) -> bool:
    """Whether the federation's topics are there, all of them."""
    return {topic.name for topic in await broker.list_topics(f"{topics.federation}.")} >= set(topics.names)


async def wait_for_topics(broker: Broker, topics: Topics, shutdown: Shutdown) -> bool:
    """Wait until the federation's aggregator has made its topics. False when a stop came and there are still none."""
    pause, is_new = _FIRST_LOOK_SECONDS, True
    while True:
        there = await until_stop(topics_exist(broker, topics), shutdown)
        met(BROKER)
        if there:
            return True
        if shutdown.requested:
            return False
        if pause == _LAST_LOOK_SECONDS:
            say = logger.warning if is_new else logger.info
            is_new = False
            say(
                "waiting for federation %s: it has no topics yet, or this user may not see them (Describe)",
                topics.federation,
            )
        await shutdown.wait(pause)
        pause = min(2 * pause, _LAST_LOOK_SECONDS)

"""Waiting for a federation's topics, and noticing what becomes of them."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import NoReturn

from llmos_stream.broker import Broker, TopicInfo
from llmos_stream.broker.placement import record_bytes
from llmos_stream.broker.rules import topic_missing
from llmos_stream.config import WireSettings
from llmos_stream.errors import BrokerUnavailable, ConfigError, TopicChanged, TopicMissing
from llmos_stream.runtime import BROKER, Clock, Shutdown, met
from llmos_stream.runtime.retry import until_stop
from llmos_stream.wire.chunks import CHUNK_OVERHEAD

logger = logging.getLogger(__name__)

_FIRST_LOOK_SECONDS = 0.05
_LAST_LOOK_SECONDS = 2.0
_WATCH_SECONDS = 10.0
_DOUBT_SECONDS = 1.0
_BESIDE_CHUNK = CHUNK_OVERHEAD + record_bytes(bytes(128), b"", [("traceparent", bytes(55))])
"""What a record of a chunk is longer than the chunk at most: its key is a client id or a version."""


async def missing_topics(broker: Broker, needed: Sequence[str]) -> list[str]:
    """Those that are not there, or that this user may not see."""
    present = await _partitions(broker, needed)
    return [name for name in needed if name not in present]


async def wait_for_topics(broker: Broker, needed: Sequence[str], shutdown: Shutdown) -> bool:
    """Wait until the aggregator has made these topics. False when a stop came and some are still missing.

    A role names those that it uses: one whose user may see no others works.
    """
    pause, is_new = _FIRST_LOOK_SECONDS, True
    while True:
        missing = await until_stop(missing_topics(broker, needed), shutdown)
        met(BROKER)
        if not missing:
            return True
        if shutdown.requested:
            return False
        if pause == _LAST_LOOK_SECONDS:
            say = logger.warning if is_new else logger.info
            is_new = False
            say(
                "waiting for %s: no aggregator has made that yet, or this user may not see it (Describe)",
                ", ".join(missing),
            )
        await shutdown.wait(pause)
        pause = min(2 * pause, _LAST_LOOK_SECONDS)


async def watch_topics(broker: Broker, names: Sequence[str], clock: Clock) -> NoReturn:
    """Look after topics that nobody may read or write for long.

    Raises:
        TopicMissing: One was deleted.
        TopicChanged: One was given more partitions. What clients write to those, nobody reads.
    """
    before = dict[str, int]()
    while True:
        with suppress(BrokerUnavailable):
            if await missing_topics(broker, names):
                await clock.sleep(_DOUBT_SECONDS)  # the brokers of a cluster do not all know at once
                if missing := await missing_topics(broker, names):
                    raise TopicMissing(topic_missing(missing[0]))
            for name, partitions in (await _partitions(broker, names)).items():
                if partitions > before.setdefault(name, partitions):
                    raise TopicChanged(f"topic {name} has {partitions} partitions now")
        await clock.sleep(_WATCH_SECONDS)


async def check_chunks_fit(broker: Broker, wire: WireSettings, names: Sequence[str]) -> None:
    """Raise ConfigError where a topic takes no records as large as chunks are, as far as this user may see that."""
    for topic in await _infos(broker, names):
        limit = topic.effective.get("max.message.bytes")
        if limit is not None and wire.chunk_bytes + _BESIDE_CHUNK > int(limit):
            fitting = max(int(limit) - _BESIDE_CHUNK, 0)
            raise ConfigError(
                f"wire.chunk_bytes: {wire.chunk_bytes} does not fit topic {topic.name}, whose max.message.bytes is "
                f"{limit}; set LLMOS_WIRE__CHUNK_BYTES={fitting} for every role, or have that of the topic raised"
            )


async def _partitions(broker: Broker, names: Sequence[str]) -> dict[str, int]:
    return {topic.name: topic.partitions for topic in await _infos(broker, names)}


async def _infos(broker: Broker, names: Sequence[str]) -> list[TopicInfo]:
    """Those of these topics that this user can see. They are of one federation."""
    prefix = names[0].rpartition(".")[0]
    return [topic for topic in await broker.list_topics(f"{prefix}.") if topic.name in names]

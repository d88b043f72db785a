"""How aiokafka is set up for this traffic: runs of records of nearly 1 MiB, and single small ones between them.

Each value is a setting of `broker`, most under Kafka's own name; the comments say why its default is what it is.
"""

import math
from typing import Any

from aiokafka import codec

from llmos_stream.broker.placement import MAX_RECORD_BYTES
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import ConfigError

_SHARED_WAIT_MS = 50


def fetch_options(settings: BrokerSettings, most: int | None = None) -> dict[str, Any]:
    """Keyword arguments of an AIOKafkaConsumer, which takes `most` bytes of a partition at a time."""
    return {
        # A fetch is several times in memory at once: as it comes in, as a whole, as records. Two chunks with their
        # headers are as fast as eight and cost 7 MiB in place of 24. No round number, as Kafka cuts the batch that
        # no longer fits, and its bytes come again: 6 % of all at 2 MiB.
        "max_partition_fetch_bytes": min(settings.max_partition_fetch_bytes, math.inf if most is None else most),
        # aiokafka's 50 MiB would let a topic of many partitions take 200 MiB of memory at once.
        "fetch_max_bytes": settings.fetch_max_bytes,
    }


def fetch_wait_ms(settings: BrokerSettings, partitions: int) -> int:
    """How long the broker may hold a fetch of so many partitions where there is nothing new.

    A new record ends the wait at once, so that a short one only costs idle readers requests. But aiokafka has one fetch
    under way, which leaves out the partitions whose records have not been taken yet: with several, a partition's next
    record may find the others being waited for, and so wait itself.
    """
    return min(settings.fetch_max_wait_ms, _SHARED_WAIT_MS) if partitions > 1 else settings.fetch_max_wait_ms


def produce_options(settings: BrokerSettings) -> dict[str, Any]:
    """Keyword arguments of an AIOKafkaProducer. Raises ConfigError where a compression's package is missing."""
    compression = settings.compression_type
    if compression != "none" and not getattr(codec, f"has_{compression}")():
        raise ConfigError(f"broker.compression_type: {compression} needs the package cramjam")
    return {
        # The whole of what Kafka takes by default, its batch's header included; aiokafka's own limit is 12 bytes less.
        "max_request_size": MAX_RECORD_BYTES,
        # For events and control records: those that come while a request is under way go together in the next, and
        # four times aiokafka's 16 KiB halves the time that 2,000 take. A chunk is larger and goes alone.
        "max_batch_size": settings.max_batch_size,
        # A chunk fills a batch and needs no company; a small record alone would only wait (2 ms: 0.4 ms becomes 3).
        "linger_ms": settings.linger_ms,
        # Payloads come compressed by a codec that knows what they are; a second time costs CPU and saves nothing.
        "compression_type": None if compression == "none" else compression,
    }

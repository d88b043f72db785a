"""The reference's processes, plain aiokafka: `python -m tests.bench.raw_child producer | consumer SERVERS TOPIC`."""

import asyncio
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from llmos_stream.config import load
from tests.bench.children import serve

_REQUEST_BYTES = 1 << 20


async def produce(servers: str, topic: str) -> None:
    """Answers `prepare` (`size` bytes in records of `record`) and `send` (them, `times`, acknowledged each time)."""
    producer = AIOKafkaProducer(bootstrap_servers=servers, acks="all", max_request_size=_REQUEST_BYTES)
    await producer.start()
    values: list[bytes] = []

    async def answer(command: dict[str, Any]) -> Mapping[str, object]:
        begun = time.time()
        if command["do"] == "prepare":
            size, record = command["size"], command["record"]
            values[:] = [os.urandom(min(record, size - begin)) for begin in range(0, size, record)]
        else:
            for _ in range(command["times"]):
                for future in [await producer.send(topic, value, partition=0) for value in values]:
                    await future
        return {"begun": begun}

    try:
        await serve(answer)
    finally:
        await producer.stop()


async def consume(servers: str, topic: str) -> None:
    """Answers `receive`: reads on until `size` more bytes have come."""
    fetch_bytes = load().broker.max_partition_fetch_bytes
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, enable_auto_commit=False, max_partition_fetch_bytes=fetch_bytes
    )
    await consumer.start()
    consumer.assign([TopicPartition(topic, 0)])
    await consumer.seek_to_beginning()

    async def answer(command: dict[str, Any]) -> Mapping[str, object]:
        left = command["size"]
        while left > 0:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                left -= sum(len(record.value) for record in records)
        return {"ended": time.time(), "surplus": -left}

    try:
        await serve(answer)
    finally:
        await consumer.stop()


if __name__ == "__main__":
    role = {"producer": produce, "consumer": consume}[sys.argv[1]]
    asyncio.run(role(*sys.argv[2:]))

"""The reference: the same bytes in the same records between as many processes, by aiokafka and nothing else."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from llmos_stream.broker import Broker, TopicSpec
from llmos_stream.runtime import run_all, run_while
from tests.bench.children import BenchmarkFailed, Child, end_all

_MODULE = "tests.bench.raw_child"
_MESSAGE_BYTES = 32_000_000
_TOTAL_BYTES = 400_000_000


class RawKafka:
    """N producers and one consumer, each in a process of its own."""

    def __init__(self, producers: list[Child], consumer: Child, record_bytes: int) -> None:
        self._producers = producers
        self._consumer = consumer
        self._record_bytes = record_bytes

    async def mb_per_second(self, size: int, times: int) -> float:
        """MB/s while every producer sends `times` messages of `size` bytes, from the first byte to the last.

        More than 400 MB say nothing new: then there are fewer messages, and none is longer than 32 MB.
        """
        most = max(1, min(size * times, _TOTAL_BYTES // len(self._producers)))
        size = min(size, most, _MESSAGE_BYTES)
        times = max(1, most // size)
        total = size * times * len(self._producers)
        await run_all(*(child.ask("prepare", size=size, record=self._record_bytes) for child in self._producers))
        work = run_all(
            self._consumer.ask("receive", size=total), *(child.ask("send", times=times) for child in self._producers)
        )
        received, *sent = await run_while(work, *(child.watch() for child in (self._consumer, *self._producers)))
        if received["surplus"]:
            raise BenchmarkFailed(f"the reference received {received['surplus']} bytes more than were sent")
        return float(total / 1e6 / (received["ended"] - min(one["begun"] for one in sent)))


@asynccontextmanager
async def raw_kafka(
    broker: Broker, servers: str, topic: str, producers: int, record_bytes: int, folder: Path
) -> AsyncIterator[RawKafka]:
    """Start the processes; end them and delete the topic afterwards."""
    async with AsyncExitStack() as stack:
        await broker.create_topics([TopicSpec(topic, config={"compression.type": "producer"})])
        stack.push_async_callback(broker.delete_topics, [topic])
        children: list[Child] = []
        stack.push_async_callback(end_all, children)
        for name in ("consumer", *(f"producer-{number}" for number in range(producers))):
            role = name.partition("-")[0]
            children.append(await Child.start(f"raw-{name}", _MODULE, role, servers, topic, folder=folder))
        yield RawKafka(children[1:], children[0], record_bytes)

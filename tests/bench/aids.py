"""What tests of several benchmarks look at."""

from llmos_stream.broker import connect
from tests.bench.common import OWN_PREFIX
from tests.conftest import KafkaNode


async def left_topics(kafka: KafkaNode) -> set[str]:
    """What this process made and did not delete. Others measure on the same Kafka."""
    async with connect(kafka.settings()) as broker:
        return {topic.name for topic in await broker.list_topics(OWN_PREFIX)}

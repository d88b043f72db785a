import asyncio
from collections.abc import Iterator

import pytest

from llmos_stream.broker import connect
from tests.bench.common import OWN_PREFIX
from tests.conftest import KafkaNode


@pytest.fixture(autouse=True)
def no_topics_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """A benchmark deletes the topics that it makes. Others measure on the same Kafka."""
    if "kafka" not in request.fixturenames:
        yield
        return
    kafka: KafkaNode = request.getfixturevalue("kafka")
    yield
    assert asyncio.run(_left(kafka)) == set()


async def _left(kafka: KafkaNode) -> set[str]:
    async with connect(kafka.settings()) as broker:
        return {topic.name for topic in await broker.list_topics(OWN_PREFIX)}

"""The stack with three brokers: every record has three copies, and the run goes on without one of them."""

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from tests.docker.stack import PATIENCE_SECONDS, Stack
from tests.docker.waiting import Say, timed, until

pytestmark = [pytest.mark.timeout(1500), pytest.mark.full, pytest.mark.in_order, pytest.mark.xdist_group("containers")]


async def _copies(bootstrap_servers: str) -> set[int]:
    """How many brokers keep each partition of the federation's topics."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        names = [name for name in await admin.list_topics() if name.startswith("llmos.")]
        assert names
        found = await admin.describe_topics(names)
        return {len(partition["replicas"]) for topic in found for partition in topic["partitions"]}
    finally:
        await admin.close()


def test_a_broker_is_killed_and_the_run_goes_on(replicated: Stack, say: Say) -> None:
    until(lambda: replicated.version() >= 2, "there is version 2", PATIENCE_SECONDS)
    assert asyncio.run(_copies(f"127.0.0.1:{replicated.ports['KAFKA_2_PORT']}")) == {3}
    with timed(say, "kill -9 kafka-2 of three, on without it, and back"):
        before = replicated.kill("kafka-2")
        replicated.moves_on("after one of three brokers was killed")
        until(lambda: replicated.back("kafka-2", before), "it is started again", PATIENCE_SECONDS)
        until(lambda: replicated.look("kafka-2").healthy, "it is healthy", PATIENCE_SECONDS)

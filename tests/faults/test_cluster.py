"""Three brokers, one of which is killed while a federation runs. The run goes on without it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmos_stream.broker import Topics
from llmos_stream.broker.kafka.connection import Connection, topic_partitions
from llmos_stream.config import BrokerSettings
from llmos_stream.roles.aggregator.publisher import group_of
from tests.conftest import need_a_local_kafka
from tests.faults.cluster import LocalCluster
from tests.faults.plan import BROKER, Fault, Plan, Point
from tests.faults.trials import try_on_kafka

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    need_a_local_kafka()
    with LocalCluster(3) as cluster:
        yield cluster


async def _leaders(servers: str) -> dict[str, list[int]]:
    async with Connection(BrokerSettings(bootstrap_servers=servers)).admin() as admin:
        present = await topic_partitions(admin)
    return {name: [part.leader for part in parts] for name, parts in present.items()}


def _coordinator_partition(transactional_id: str, partitions: int) -> int:
    """Which partition of `__transaction_state` answers for an id: Java's hash of the text."""
    code = 0
    for character in transactional_id:
        code = (31 * code + ord(character)) & 0xFFFFFFFF
    return (code & 0x7FFFFFFF) % partitions


@pytest.mark.full
async def test_one_of_three_brokers_is_killed_and_the_run_goes_on(
    cluster: LocalCluster, federation: str, tmp_path: Path
) -> None:
    plan = Plan(7, "fedbuff-momentum", "int8", updates=8, points=(Point(Fault.RESTART_BROKER, BROKER, 2),))
    group = group_of(Topics(federation))
    killed: list[int] = []

    def kill() -> None:
        # The node that knows which transactions are open: the worst one to lose.
        states = asyncio.run(_leaders(cluster.bootstrap_servers))["__transaction_state"]
        killed.append(states[_coordinator_partition(group, len(states))])
        cluster.kill(killed[0])

    trial = await try_on_kafka(plan, cluster.bootstrap_servers, kill, tmp_path, federation)
    assert trial.findings == []
    assert trial.outcome.struck == list(plan.points)
    assert [cluster.running(number) for number in killed] == [False], "the run was over without it"
    cluster.start(killed[0])
    assert all(cluster.running(number) for number in cluster.numbers)

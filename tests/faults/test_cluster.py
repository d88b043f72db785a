"""Three brokers, one of which is killed while a federation runs. The run goes on without it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from llmos_stream.broker import Producer, Topics, connect
from llmos_stream.broker.kafka.connection import Connection, topic_partitions
from llmos_stream.config import BrokerSettings
from llmos_stream.log.producer import RetryingProducer
from llmos_stream.roles.aggregator.publisher import group_of
from llmos_stream.runtime import Shutdown
from llmos_stream.testing import until
from tests.broker.helpers import make_topic, read_all, values
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


@pytest.mark.full
async def test_a_topic_that_wants_more_replicas_than_live_is_one_clear_line_and_nothing_is_lost(
    cluster: LocalCluster, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    servers = cluster.bootstrap_servers
    broker = connect(BrokerSettings(bootstrap_servers=servers, request_timeout_seconds=5.0))
    topic = await make_topic(broker, federation, config={"min.insync.replicas": "3"})
    too_few = f"takes no record of {topic}: fewer of its replicas are in sync than its min.insync.replicas asks for"

    def write(value: bytes) -> Callable[[Producer], Awaitable[object]]:
        return lambda producer: producer.send(topic, value, key=b"a")

    async with RetryingProducer(broker, Shutdown(), 0.5) as patient:
        await patient.deliver(write(b"before"))
        await asyncio.to_thread(cluster.kill, 3)
        try:
            delivering = asyncio.create_task(patient.deliver(write(b"after")))
            await until(lambda: too_few in caplog.text or delivering.done(), 90.0)
            assert not delivering.done()
        finally:
            await asyncio.to_thread(cluster.start, 3)
        async with asyncio.timeout(90.0):
            await delivering
    assert all("\n" not in record.getMessage() for record in caplog.records if too_few in record.getMessage())
    # Whether an attempt was written that nobody confirmed is not known: updates are told apart by their sequence.
    assert set(values(await read_all(broker, topic))) == {b"before", b"after"}

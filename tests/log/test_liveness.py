"""Who leads a federation, as its log tells."""

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.log.liveness import living_leader
from llmos_stream.wire.control import AGGREGATOR, Leader, dump_setting
from tests.roles.aids import aggregator, settings_for

_SECONDS = 30.0
_TOPICS = Topics("watched")


async def test_one_that_leads_is_heard_and_one_that_left_is_not_waited_for() -> None:
    async with MemoryBroker() as broker:
        assert await living_leader(broker, _TOPICS, _SECONDS) is None
        async with aggregator(broker, settings_for("watched")) as running:
            await running.version(0)
            leader = await living_leader(broker, _TOPICS, _SECONDS)
            assert leader is not None
            assert (leader.term, leader.left) == (1, False)
        assert await living_leader(broker, _TOPICS, _SECONDS) is None


async def test_one_that_died_is_not_heard() -> None:
    async with MemoryBroker() as broker:
        async with aggregator(broker, settings_for("watched")) as running:
            await running.version(0)
        async with broker.producer() as producer:
            await producer.send(_TOPICS.control, dump_setting(Leader(2, "dead")), key=AGGREGATOR)
        assert await living_leader(broker, _TOPICS, 0.2) is None

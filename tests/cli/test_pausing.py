"""`llmos-stream pause` and `resume` on a real Kafka."""

import asyncio

import pytest

from llmos_stream.broker import Topics, connect
from llmos_stream.log import ControlView
from tests.cli.aids import Run
from tests.conftest import KafkaNode

pytestmark = pytest.mark.kafka


def test_pause_and_resume(llmos: Run, kafka: KafkaNode, on_kafka: str) -> None:
    async def paused() -> bool:
        topics = [Topics(on_kafka).control]
        async with connect(kafka.settings()) as broker, broker.reader(topics, start="earliest") as reader:
            view = ControlView(reader)
            await view.catch_up()
            return view.paused

    done = llmos("pause")
    assert done.status != 0
    assert "topics create" in done.error()
    assert llmos("topics", "create").status == 0
    done = llmos("pause")
    assert (done.status, done.out) == (
        0,
        "paused: clients rest, nothing is folded; llmos-stream resume lets it go on\n"
        "updates under way wait in the log for at most 24 hours (topics.updates_retention_hours)\n",
    )
    assert asyncio.run(paused())
    assert llmos("pause", "--json").json() == {"paused": True, "updates_kept_hours": 24.0}
    assert llmos("resume", "--json").json() == {"paused": False}
    assert not asyncio.run(paused())

"""Following heads as they come."""

import pytest

from llmos_stream.broker import Broker
from llmos_stream.log import scan
from llmos_stream.log.scan import HeadStream, read_heads
from llmos_stream.types import VersionHead
from tests.log.test_index import a_log, records_of, version_head


@pytest.fixture(autouse=True)
def _short_payloads_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "_WORTH_A_SEEK", 2000)


async def test_each_head_is_given_once(broker: Broker, federation: str) -> None:
    async with a_log(broker, federation) as log:
        places = await log.run(range(13), most_records=6)
        async with broker.reader([log.topic], start="earliest") as reader:
            found = [(logged.head.number, logged.offset) async for logged in read_heads(reader, VersionHead)]
    assert found == [(number, at.offset) for number, at in places.items()]


async def test_a_claim_to_be_longer_than_the_log_hides_nothing(broker: Broker, federation: str) -> None:
    async with a_log(broker, federation) as log:
        await log.write((b"500", records_of(version_head(500, 100_000))[0]))
        await log.publish(version_head(0))
        await log.write((b"501", records_of(version_head(501, 100_000))[0]))
        async with broker.reader([log.topic], start="earliest") as reader:
            following, found = HeadStream(reader, VersionHead), list[int]()
            while await reader.lag():
                found += [logged.head.number for logged in await following.heads(1.0)]
            await log.publish(version_head(1, 3))
            while len(found) < 4:
                found += [logged.head.number for logged in await following.heads(1.0)]
    assert found == [500, 0, 501, 1]

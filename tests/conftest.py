"""Fixtures that all rooms share: a clean environment, names that do not collide, and brokers to test against."""

import os
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import settings as hypothesis_settings

from llmos_stream.broker import Broker, LocalKafka, MemoryBroker, connect
from llmos_stream.config import BrokerSettings

IN_CI = bool(os.environ.get("CI"))
EXTERNAL_KAFKA = os.environ.get("LLMOS_TEST_BOOTSTRAP")

hypothesis_settings.register_profile("llmos", deadline=None, derandomize=IN_CI)
hypothesis_settings.load_profile("llmos")


@dataclass(frozen=True)
class KafkaNode:
    """The Kafka of this test session. `local` is None where the environment named one of its own."""

    bootstrap_servers: str
    local: LocalKafka | None

    def settings(self) -> BrokerSettings:
        return BrokerSettings(bootstrap_servers=self.bootstrap_servers)

    def own(self) -> LocalKafka:
        """The node, for tests that stop and kill it."""
        if self.local is None:
            pytest.skip("the Kafka in LLMOS_TEST_BOOTSTRAP is not ours to stop")
        return self.local


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a developer has set for a federation of theirs must not reach the tests."""
    for name in list(os.environ):
        if name.startswith("LLMOS_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaNode]:
    """A real Kafka, one for the whole session; skips where there can be none, fails where CI promises one."""
    if EXTERNAL_KAFKA:
        yield KafkaNode(EXTERNAL_KAFKA, None)
        return
    if (reason := LocalKafka.missing()) is not None:
        if IN_CI:
            pytest.fail(f"CI must test against a real Kafka: {reason}")
        pytest.skip(reason)
    with LocalKafka() as local:
        yield KafkaNode(local.bootstrap_servers, local)


@pytest.fixture
def federation() -> str:
    """A name no other test uses, so that tests can share a broker."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(params=["memory", pytest.param("kafka", marks=pytest.mark.kafka)])
async def broker(request: pytest.FixtureRequest, federation: str) -> AsyncIterator[Broker]:
    """Each implementation in turn."""
    if request.param == "memory":
        yield MemoryBroker()
        return
    node: KafkaNode = request.getfixturevalue("kafka")
    async with connect(node.settings()) as broker:
        yield broker
        if node.local is None:
            await broker.delete_topics([topic.name for topic in await broker.list_topics(federation)])

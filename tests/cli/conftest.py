import asyncio
import uuid

import pytest

from tests.cli.fixtures import _own_terminal_and_home, llmos, nobody, on_kafka, start
from tests.cli.logged import Logged, write_log
from tests.conftest import KafkaNode

__all__ = ["_own_terminal_and_home", "llmos", "nobody", "on_kafka", "start"]


@pytest.fixture(scope="session")
def written(shared_kafka: KafkaNode) -> Logged:
    return asyncio.run(write_log(shared_kafka, f"t-{uuid.uuid4().hex[:12]}"))


@pytest.fixture
def logged(written: Logged, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch) -> Logged:
    """A federation with a log to look at, which the environment names."""
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    monkeypatch.setenv("LLMOS_FEDERATION__NAME", written.federation)
    return written

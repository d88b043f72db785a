"""A FaultyBroker without a fault keeps what every broker promises."""

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.testing import FaultyBroker
from tests.broker.test_contract import *  # noqa: F403  the suite, with the broker below


@pytest.fixture
def broker() -> Broker:
    return FaultyBroker(MemoryBroker())

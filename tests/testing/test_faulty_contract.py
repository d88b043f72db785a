"""A FaultyBroker without a fault keeps what every broker promises."""

import pytest

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.testing import FaultyBroker
from tests.broker.test_contract_records import *  # noqa: F403  the suite, with the broker below
from tests.broker.test_contract_topics import *  # noqa: F403
from tests.broker.test_contract_transactions import *  # noqa: F403


@pytest.fixture
def broker() -> Broker:
    return FaultyBroker(MemoryBroker())

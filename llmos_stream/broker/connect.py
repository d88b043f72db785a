"""The broker that the settings name."""

from llmos_stream.broker.kafka.broker import KafkaBroker
from llmos_stream.broker.ports import Broker
from llmos_stream.config import BrokerSettings
from llmos_stream.errors import ConfigError


def connect(settings: BrokerSettings) -> Broker:
    """The Kafka cluster of `bootstrap_servers`; `async with` it to be sure that it answers.

    Raises ConfigError where none is named: a log inside one process must be asked for by making a
    `MemoryBroker`, since nothing outside this process could join it.
    """
    if settings.bootstrap_servers is None:
        raise ConfigError(
            "broker.bootstrap_servers: not set; name a Kafka (LLMOS_BROKER__BOOTSTRAP_SERVERS=HOST:PORT), "
            "start one with `llmos-stream broker start`, or run an embedded federation"
        )
    return KafkaBroker(settings)

"""The log: what the rest of the package may do with it, on real Kafka or inside one process."""

from llmos_stream.broker.connect import connect
from llmos_stream.broker.kafka.broker import KafkaBroker
from llmos_stream.broker.local.server import LocalKafka
from llmos_stream.broker.memory.broker import MemoryBroker
from llmos_stream.broker.ports import (
    Broker,
    Headers,
    Producer,
    Reader,
    Record,
    Sent,
    Start,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    Transaction,
    Writer,
)
from llmos_stream.broker.topics import Topics

__all__ = [
    "Broker",
    "Headers",
    "KafkaBroker",
    "LocalKafka",
    "MemoryBroker",
    "Producer",
    "Reader",
    "Record",
    "Sent",
    "Start",
    "TopicInfo",
    "TopicPartition",
    "TopicSpec",
    "Topics",
    "Transaction",
    "Writer",
    "connect",
]

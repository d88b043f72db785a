"""The log: what the rest of the package may do with it, on real Kafka or inside one process."""

from llmos_stream.broker.kafka.broker import connect
from llmos_stream.broker.local.server import LocalKafka
from llmos_stream.broker.memory.broker import MemoryBroker
from llmos_stream.broker.ports import (
    Broker,
    Headers,
    Producer,
    Reader,
    Record,
    Sent,
    TopicInfo,
    TopicPartition,
    TopicSpec,
    Transaction,
)
from llmos_stream.broker.topics import Topics

__all__ = [
    "Broker",
    "Headers",
    "LocalKafka",
    "MemoryBroker",
    "Producer",
    "Reader",
    "Record",
    "Sent",
    "TopicInfo",
    "TopicPartition",
    "TopicSpec",
    "Topics",
    "Transaction",
    "connect",
]

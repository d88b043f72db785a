"""The broker on real Kafka, through aiokafka."""

from llmos_stream.broker.kafka.broker import KafkaBroker

__all__ = ["KafkaBroker"]

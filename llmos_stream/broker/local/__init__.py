"""A developer's Kafka on this machine."""

from llmos_stream.broker.local.server import LocalKafka

__all__ = ["LocalKafka"]

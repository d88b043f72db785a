"""A developer's Kafka on this machine."""

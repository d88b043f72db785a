"""The broker on real Kafka, through aiokafka."""

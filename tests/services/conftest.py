from tests.cli.fixtures import _process_as_before, nobody, on_kafka

__all__ = ["_process_as_before", "nobody", "on_kafka"]

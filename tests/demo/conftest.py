from tests.cli.fixtures import _process_as_before, llmos, on_kafka, start

__all__ = ["_process_as_before", "llmos", "on_kafka", "start"]

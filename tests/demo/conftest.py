from tests.cli.fixtures import _process_as_before, llmos, nobody, on_kafka, start

__all__ = ["_process_as_before", "llmos", "nobody", "on_kafka", "start"]

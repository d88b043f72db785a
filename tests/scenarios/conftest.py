from tests.cli.fixtures import _own_terminal_and_home, llmos, nobody, on_kafka, start

__all__ = ["_own_terminal_and_home", "llmos", "nobody", "on_kafka", "start"]

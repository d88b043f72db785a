from tests.cli.fixtures import _own_terminal_and_home, nobody, on_kafka

__all__ = ["_own_terminal_and_home", "nobody", "on_kafka"]

from tests.cli.fixtures import _own_terminal_and_home, llmos, nobody

__all__ = ["_own_terminal_and_home", "llmos", "nobody"]

"""Where the program begins: it heeds Ctrl-C before it imports anything that takes its time."""

import os
import signal

TYPE_CHECKING = False  # as in `typing`, which takes its time itself
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import NoReturn


def run(argv: "Sequence[str] | None" = None) -> "NoReturn":
    """Run one command, and end the process with its exit status.

    Ctrl-C among the imports ends it at once: an interrupt there would end in a traceback, or be lost in one of them.
    """
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if heeded:
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))

    from llmos_stream.cli.main import run as run_command

    if heeded:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run_command(argv)

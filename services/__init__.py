"""The containers of a federation.

`python -m services.aggregator`, `.archiver`, `.client`, `.evaluator`, `.inference` and `.monitor` start one each.

Each is the command of `llmos-stream` with a container's defaults: settings from the environment (`LLMOS_…`), JSON logs
on standard error, and `/health`, `/ready` and `/metrics` on port 8080. What the environment says goes before these.

Exit status: 0 the run has ended, or a stop was asked for and the drain was clean; 1 failed; 2 settings that make no
sense; 3 no broker; 4 a newer aggregator has taken over; 130 Ctrl-C, or a stop that took longer than
`runtime.stop_seconds`.
"""

import os
from collections.abc import Sequence
from typing import NoReturn

from llmos_stream.cli.entry import run

PORT = 8080
_DEFAULTS = {
    "LLMOS_RUNTIME__LOG_JSON": "true",
    "LLMOS_OPERATIONS__HOST": "0.0.0.0",  # noqa: S104 (a container's own network)
    "LLMOS_OPERATIONS__PORT": str(PORT),
}


def default(name: str, value: str) -> None:
    """Set a variable that is not set, or empty, which means the same."""
    if not os.environ.get(name, "").strip():
        os.environ[name] = value


def serve(command: str, arguments: Sequence[str]) -> NoReturn:
    """Run a command of `llmos-stream`, with more `arguments`, under a container's defaults, and end with its status.

    What it came to is one line of JSON on standard output.
    """
    for name, value in _DEFAULTS.items():
        default(name, value)
    run([command, "--json", *arguments])

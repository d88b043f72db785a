"""A server that has everything imported forks processes of the package, so that one costs milliseconds.

A new interpreter imports torch for seconds. That one can be started is seen where tests start `python -m` themselves.
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

_PRELOADED = [
    "torch",
    "llmos_stream.broker",
    "llmos_stream.cli.main",
    "llmos_stream.inference",
    "llmos_stream.roles.aggregator",
    "llmos_stream.roles.client",
    "llmos_stream.roles.evaluator",
    "services",
    "tests.faults.processes",
]


def context() -> ForkServerContext:
    """The server's own context: everything is imported there, and no thread runs there."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(_PRELOADED)
    return forkserver


def run_module(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    """Be `python -m module` with these arguments, folder, environment and output."""
    for end, standard in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), standard)
        end.close()
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(folder))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)

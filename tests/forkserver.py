"""A server that has everything imported forks processes of the package, so that one costs milliseconds.

A new interpreter imports torch for seconds. Tests that show that one can be started ask for it (`exec_module`).
"""

import multiprocessing
import os
import runpy
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from multiprocessing.forkserver import ensure_running
from pathlib import Path

_PRELOADED = [
    "torch",
    "torch._dynamo",  # the first optimiser of a process imports it, for two seconds
    "llmos_stream.broker",
    "llmos_stream.cli.main",
    "llmos_stream.inference",
    "llmos_stream.roles.aggregator",
    "llmos_stream.roles.client",
    "llmos_stream.roles.evaluator",
    "services",
    "tests.faults.processes",
]


_ENVIRONMENT, _FOLDER = dict(os.environ), Path.cwd()  # before any test has changed them for itself


def context(also: Sequence[str] = ()) -> ForkServerContext:
    """The server's own context: everything is imported there, and no thread runs there.

    `also` are further modules to import, where the server does not run yet.
    """
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload([*_PRELOADED, *also])
    with _as_it_was():
        ensure_running()
    return forkserver


@contextmanager
def _as_it_was() -> Iterator[None]:
    """Keep from the server, which outlives the test that starts it, what that has set: it would be everybody's."""
    environment = dict(os.environ)
    with chdir(_FOLDER):
        os.environ.clear()
        os.environ.update(_ENVIRONMENT)
        try:
            yield
        finally:
            os.environ.clear()
            os.environ.update(environment)


def run_module(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    """Be `python -m module` with these arguments, folder, environment and output."""
    _settle(folder, out, err)
    os.environ.clear()
    os.environ.update(environment)
    sys.path.insert(0, str(folder))
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def exec_module(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    environment: Mapping[str, str],
    out: Connection,
    err: Connection,
) -> None:
    """Be a new interpreter that does the same: for the package itself, the `llmos-stream` that is installed."""
    _settle(folder, out, err)
    installed = Path(sys.executable).with_name("llmos-stream")
    command = [str(installed)] if module == "llmos_stream" else [sys.executable, "-m", module]
    os.execve(command[0], [*command, *arguments], dict(environment))  # noqa: S606


def _settle(folder: Path, out: Connection, err: Connection) -> None:
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for end, standard in ((out, 1), (err, 2)):
        os.dup2(end.fileno(), standard)
        end.close()
    os.chdir(folder)

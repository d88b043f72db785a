"""`llmos-stream`: the commands, and how an error becomes one line and an exit status."""

import argparse
import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TextIO

from llmos_stream import __version__
from llmos_stream.cli import (
    audit,
    broker,
    clients,
    demo,
    deploy,
    docs,
    evaluations,
    finish,
    inspect,
    monitor,
    new,
    pausing,
    registry,
    replay,
    report,
    roles,
    scenario,
    serve,
    settings,
    simulate,
    topics,
    track,
    versions,
)
from llmos_stream.cli.common import Parser, run_command
from llmos_stream.cli.guesses import GUESSES, without_words_of_other_tools
from llmos_stream.errors import LlmosError
from llmos_stream.runtime.process import ExitCode, exit_code, exit_process

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}

_EPILOG = """\
start with llmos-stream demo, which trains one model with eight clients here;
llmos-stream COMMAND --help says what a command does, with examples
"""
_STEPS = """start here:
  llmos-stream demo                     eight clients train one model here;
                                        writes report.html
  llmos-stream new NAME                 a project of your own, which runs
  llmos-stream demo --broker kafka      the same on a Kafka, one process each

a federation on your Kafka:
  export LLMOS_BROKER__BOOTSTRAP_SERVERS=host:9092
  llmos-stream aggregator               one; a second one stands by
  llmos-stream client --client.shard 0  one for each shard of the data
  llmos-stream evaluate                 measures every version
  llmos-stream monitor                  what happens, live or for Prometheus
  llmos-stream report                   what has happened so far, as a page
  llmos-stream evaluations              what versions reached, also by site
  llmos-stream serve                    answers predictions over HTTP
  llmos-stream deploy                   keeps vLLM or LoRAX at what is promoted
  llmos-stream archive                  keeps versions past retention
  llmos-stream versions list            what the log holds
  llmos-stream replay                   rebuild every version, compare
  llmos-stream track --to csv:tracked   for MLflow, TensorBoard, W&B, pandas

Each setting is a flag (--codec.name int4), a variable (LLMOS_CODEC__NAME=int4)
and a line in a TOML file (--config FILE); `llmos-stream settings` lists them
all with their present values.
"""


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command, and end the process with its exit status."""
    # A closed stream (`>&-`) is none at all to Python.
    sys.stdout, sys.stderr = (stream or _nowhere() for stream in (sys.stdout, sys.stderr))
    exit_process(main(argv))


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the process's exit status."""
    try:
        status = run_command(_parsed(sys.argv[1:] if argv is None else argv))
        sys.stdout.flush()
    except LlmosError as error:
        sys.stderr.write(f"error: {error}\n")
        return exit_code(error)
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _drop_output()  # its reader has gone (`| head`)
        return ExitCode.DONE
    except OSError as error:
        if error.filename is None and error.errno not in _NO_ROOM:
            raise
        if error.filename is None:
            _drop_output()
        # A file or a folder that a person named cannot be used.
        sys.stderr.write(f"error: {error.filename or 'standard output'}: {error.strerror}\n")
        return ExitCode.FAILED
    return status


def _nowhere() -> TextIO:
    return Path(os.devnull).open("w", encoding="utf-8")


def _drop_output() -> None:
    """Give the interpreter nothing left to flush at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parsed(argv: Sequence[str]) -> argparse.Namespace:
    parser = make_parser()
    words = without_words_of_other_tools([_dashed(text) for text in argv])
    if words[1:] and words[0].startswith("--") and words[0] not in {"--help", "--help-all", "--version"}:
        parser.error(f"a command comes before its flags: llmos-stream COMMAND {words[0]} ...")
    if words and words[0] in GUESSES:
        parser.error(f"no command is called {words[0]}; {GUESSES[words[0]]}")
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        arguments.parser.refuse(unknown)
    return arguments


def _dashed(text: str) -> str:
    """A setting's flag as it is declared; files and messages write the same name with underscores."""
    name, equals, value = text.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if name.startswith("--") else text


_COMMANDS = (
    new,
    demo,
    scenario,
    roles,
    monitor,
    report,
    evaluations,
    serve,
    deploy,
    registry,
    topics,
    pausing,
    finish,
    clients,
    versions,
    audit,
    replay,
    track,
    simulate,
    inspect,
    broker,
    settings,
    docs,
)


class _Help(argparse.RawDescriptionHelpFormatter):
    """A line for each command."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=17)
        self._action_max_length = 15  # argparse forgets that commands are indented further than options


class _HelpAll(argparse.Action):
    """Shows the help with all steps of a federation."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        short, parser.epilog = parser.epilog, _STEPS
        parser.print_help()
        parser.epilog = short
        parser.exit()


def make_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="llmos-stream",
        description="Asynchronous federated learning as an event log.",
        epilog=_EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show this help with a federation, step by step")
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in _COMMANDS:
        module.add(commands)
    return parser

"""All benchmarks, or one: `python -m tests.bench [NAME [FLAGS]]`."""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

from llmos_stream.errors import LlmosError
from tests.bench.children import BenchmarkFailed, NotHere

NAMES = (
    "codec",
    "fold",
    "pipe",
    "recovery",
    "index",
    "accuracy",
    "loop",
    "serve",
    "big",
    "memory",
    "flower",
    "resnet",
    "simulate",
    "llm",
    "speeches",
)


def main(argv: Sequence[str]) -> int:
    """Run what `argv` names, everything where it names nothing. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure, beside a reference in the same run. Without a name: everything, with the defaults.",
        epilog="`python -m tests.bench NAME --help` lists the flags of one.",
    )
    parser.add_argument("name", nargs="?", choices=NAMES, help="which one")
    named = parser.parse_args(argv[:1]).name
    try:
        for name in NAMES if named is None else [named]:
            _run(name, argv[1:], alone=named is not None)
    except (LlmosError, BenchmarkFailed, TimeoutError) as error:
        sys.stderr.write(f"error: {error or type(error).__name__}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _run(name: str, argv: Sequence[str], *, alone: bool) -> None:
    """One of them. What cannot be measured on this machine fails only a run of its own."""
    module = _module(name)
    purpose = str(module.__doc__).partition("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m tests.bench {name}", description=purpose)
    module.add_arguments(parser)
    options = parser.parse_args(argv)
    try:
        module.run(options)
    except NotHere as error:
        if alone:
            raise
        sys.stderr.write(f"{name} is left out: {error}\n")


def _module(name: str) -> ModuleType:
    """Imported when it is wanted, so that each is independent of what the others need."""
    return import_module(f"tests.bench.bench_{name}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""All benchmarks, or one: `python -m tests.bench [codec | pipe | recovery]`."""

import argparse
import sys
from collections.abc import Sequence

from llmos_stream.errors import LlmosError
from tests.bench import bench_codec, bench_pipe, bench_recovery
from tests.bench.children import BenchmarkFailed

_MODULES = {"codec": bench_codec, "pipe": bench_pipe, "recovery": bench_recovery}


def main(argv: Sequence[str]) -> int:
    """Run what `argv` names, everything where it names nothing. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench",
        description="Measure, beside a reference in the same run. Without a name: everything, with the defaults.",
        epilog="`python -m tests.bench NAME --help` lists the flags of one.",
    )
    names = parser.add_subparsers(dest="name", metavar="NAME")
    for name, module in _MODULES.items():
        purpose = str(module.__doc__).partition("\n")[0]
        own = names.add_parser(name, help=purpose, description=purpose)
        module.add_arguments(own)
        own.set_defaults(run=module.run)
    first = parser.parse_args(argv)
    try:
        for options in [first] if first.name else [parser.parse_args([name]) for name in _MODULES]:
            options.run(options)
    except (LlmosError, BenchmarkFailed, TimeoutError) as error:
        sys.stderr.write(f"error: {error or type(error).__name__}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

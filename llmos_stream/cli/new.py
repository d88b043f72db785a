"""`llmos-stream new NAME`: a project of one's own, which runs at once."""

import argparse
from pathlib import Path

from llmos_stream.cli.common import Commands, add_command, answer
from llmos_stream.config import Settings
from llmos_stream.scaffold.kinds import KINDS


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "new",
        _run,
        text="make a project of your own that runs at once",
        sections=(),
        examples=(
            "  llmos-stream new wards                     # then: cd wards, pytest\n"
            "  llmos-stream new scans --template image"
        ),
    )
    kinds = "; ".join(f"{name}: {kind.learns_from}" for name, kind in KINDS.items())
    parser.add_argument("path", metavar="NAME", type=Path, help="what it is called, and its folder")
    parser.add_argument(
        "--template", choices=list(KINDS), default="tabular", help=f"what it learns from. {kinds} (default: tabular)"
    )


def _run(arguments: argparse.Namespace, _: Settings) -> int:
    from llmos_stream.scaffold.project import make_project

    made = make_project(arguments.path, arguments.template)
    steps = [
        f"cd {made.folder}",
        "pytest",
        "export LLMOS_CONFIG=llmos.toml",
        "llmos-stream aggregator",
        *(f"llmos-stream client --client.id {path.stem} --client.data data/{path.name}" for path in made.sites),
    ]
    told = {
        "folder": str(made.folder),
        "template": made.template,
        "files": [str(path.relative_to(made.folder)) for path in made.files],
        "next": steps,
    }
    answer(
        arguments,
        told,
        "\n".join([f"made {made.folder}; its README.md says more. Try it:", *map("  {}".format, steps)]),
    )
    return 0

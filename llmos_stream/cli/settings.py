"""`llmos-stream settings`: every setting with its value, where it can be set and what it does."""

import argparse
from collections.abc import Mapping

from llmos_stream.cli.common import Commands, add_command, plain_table, print_json, say, show_table
from llmos_stream.cli.flags import given_settings, settings_of
from llmos_stream.config import SECTIONS, Section, Settings, origins, redacted

_WHERE = """\
A setting is a flag (--wire.chunk-bytes 65536), a variable
(LLMOS_WIRE__CHUNK_BYTES=65536), or a line in the section of a TOML file
(--config FILE; [wire] chunk_bytes = 65536). Beneath them lies a preset.
"""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "settings",
        _run,
        text="list every setting with its value and what it does",
        sections=tuple(Settings.model_fields),
        examples="  llmos-stream settings --config federation.toml\n  llmos-stream settings --json",
    )
    parser.add_argument("--markdown", action="store_true", help="print them as a table in Markdown, with the defaults")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    if arguments.markdown:
        say(markdown())
        return 0
    if arguments.json:
        print_json(settings.model_dump(mode="json"))
        return 0
    say(_WHERE)
    table = plain_table()
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("meaning")
    found = origins(given_settings(arguments), arguments.config, arguments.defaults)
    for setting in settings_of():
        value = getattr(getattr(settings, setting.section), setting.field)
        shown = "unset" if value is None else redacted(str(value))
        kind = setting.kind.replace("|", ", ")  # a list can be broken into lines
        meaning = f"{' '.join(setting.text.split())} ({kind})"
        origin = f" ({found[setting.name]})" if setting.name in found else ""
        table.add_row(setting.flag.removeprefix("--"), shown + origin, meaning)
    show_table(table)
    return 0


def markdown(known: Mapping[str, type[Section]] = SECTIONS) -> str:
    """The settings as the documentation shows them."""
    rows = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    for setting in settings_of(known=known):
        name = f"`{setting.section}.{setting.field}`"
        kind = setting.kind.replace("|", ", ")
        rows.append(f"| {name} | {setting.default} | {kind} | {' '.join(setting.text.split())} |")
    return "\n".join(rows)

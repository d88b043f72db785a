"""What the commands share: how one is declared and how it prints."""

import argparse
import re
import sys
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from functools import partial
from io import TextIOBase
from typing import Any, NoReturn, TextIO, TypeAlias, cast

import orjson
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from llmos_stream.cli.flags import add_settings, explain_unknown, given_settings, setting_of, settings_of
from llmos_stream.config import Settings, did_you_mean, load, redacted
from llmos_stream.reporting.wording import as_text
from llmos_stream.runtime import ExitCode, configure_logging

_UNBOUNDED = 1 << 20
_BRIEF = 60
Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
Defaults: TypeAlias = Mapping[str, Mapping[str, Any]]
NO_DEFAULTS: Defaults = {}
_ALWAYS_SHOWN = {"federation.name", "broker.bootstrap_servers", "task.entry"}


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are one line, with what may have been meant."""

    def error(self, message: str) -> NoReturn:
        self.exit(ExitCode.CONFIG, f"error: {message} (see {self.prog} --help)\n")

    def refuse(self, unknown: Sequence[str]) -> NoReturn:
        """End with an error about words that nobody understood."""
        flag = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
        hint = explain_unknown(flag, self.prog.split()[-1], self._option_string_actions) if flag else ""
        self.error(f"unrecognized arguments: {' '.join(_without_secrets(unknown))}{hint}")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As argparse does, which offers no other place for it."""
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            hint = did_you_mean(str(value), known) or f" (choose from {', '.join(known)})"
            raise argparse.ArgumentError(action, f"invalid choice: {str(value)!r}{hint}")


def _without_secrets(words: Sequence[str]) -> Iterator[str]:
    """As they were typed, but for a password in a URI and the value of a flag that sounds like one."""
    before = ""
    for word in words:
        told = redacted(f"{before}={word}") if before.startswith("-") else redacted(word)
        yield told.removeprefix(f"{before}=") if before.startswith("-") else told
        before = word


class _Help(argparse.RawDescriptionHelpFormatter):
    """Leaves the settings out of the usage line: forty of them would bury the rest. They are listed below it."""

    def add_usage(self, usage: Any, actions: Any, groups: Any, prefix: str | None = None) -> None:
        super().add_usage(usage, [action for action in actions if not setting_of(action.dest)], groups, prefix)


class _ShortHelp(_Help):
    """Leaves out the settings that few people need."""

    def __init__(self, prog: str, shown: Container[str]) -> None:
        super().__init__(prog)
        self._shown = shown

    def add_argument(self, action: argparse.Action) -> None:
        setting = setting_of(action.dest)
        if setting is None or setting in self._shown:
            super().add_argument(action)


class _HelpAll(argparse.Action):
    """Shows the help with every setting."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        short, parser.formatter_class = parser.formatter_class, _Help
        parser.print_help()
        parser.formatter_class = short
        parser.exit()


class _StandardError(TextIOBase):
    """Standard error as it is at the moment: a live display takes its place, and puts log lines above itself."""

    def write(self, text: str) -> int:
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _PlainConsole(Console):
    """Plain text: names from a log or a path must not be taken for markup."""

    def __init__(self, *, stderr: bool) -> None:
        super().__init__(stderr=stderr, highlight=False, markup=False, emoji=False)

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # for `main`, like any other output's; rich would exit with an error


def add_command(
    commands: Commands,
    name: str,
    run: Callable[[argparse.Namespace, Settings], int],
    *,
    text: str,
    sections: tuple[str, ...],
    examples: str,
    defaults: Defaults = NO_DEFAULTS,
    shown: Defaults = NO_DEFAULTS,
) -> Parser:
    """Declare a command: its help, its settings' flags, `--json` and what runs it with its settings.

    `defaults` are the command's own, below all that a person says; the help has those that are `shown` as well. The
    short help has the settings of the `examples`.
    """
    needed = {
        setting.name for setting in settings_of(sections) if any(f"{flag} " in examples for flag in setting.flags)
    } | _ALWAYS_SHOWN
    parser = commands.add_parser(
        name,
        help=_brief(text),
        description=text[0].upper() + text[1:] + ".",
        epilog=f"examples:\n{examples}",
        formatter_class=partial(_ShortHelp, shown=needed),
        allow_abbrev=False,
    )
    parser.add_argument("--json", action="store_true", help="print JSON on standard output, for scripts")
    parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show this help with every setting")
    add_settings(parser, sections, {**defaults, **shown})
    parser.set_defaults(run=run, parser=parser, defaults=defaults, needs_settings=bool(sections))
    return parser


def _brief(text: str) -> str:
    """As much of it as has room in the list of commands."""
    return text if len(text) <= _BRIEF else re.split(r"[:,] | \(| until ", text)[0]


def run_command(arguments: argparse.Namespace) -> int:
    """Run the command that `arguments` name, with its settings and its logs on standard error."""
    # A command of no federation works wherever it is called; the file may be of another folder.
    settings = load(
        given_settings(arguments), arguments.config, arguments.defaults, reads_named=arguments.needs_settings
    )
    # Past a live display, where there is one.
    configure_logging(settings.runtime, cast("TextIO", _StandardError()))
    return int(arguments.run(arguments, settings))


def answer(arguments: argparse.Namespace, value: object, text: str) -> None:
    """The result, in the form that was asked for: `value` as JSON, or `text`."""
    if arguments.json:
        print_json(value)
    else:
        say(text)


def print_json(value: object) -> None:
    """One JSON value on one line of standard output."""
    sys.stdout.write(orjson.dumps(value).decode() + "\n")
    sys.stdout.flush()


def out() -> Console:
    """Results, on standard output."""
    return _PlainConsole(stderr=False)


def err() -> Console:
    """Progress and notes, on standard error, so that results can be piped."""
    return _PlainConsole(stderr=True)


def say(text: str) -> None:
    """A line of results, not broken at the width of the terminal."""
    out().print(text, soft_wrap=True)


def note(text: str) -> None:
    """A line beside the results."""
    err().print(text, soft_wrap=True)


def show_fields(fields: Mapping[str, object], hidden: Container[str]) -> None:
    """Print a line for each field that has a value, but for those `hidden`."""
    console = out()
    for name, value in fields.items():
        if name not in hidden and value not in (None, {}):
            console.print(Text.assemble((name, "bold"), f"  {as_text(value)}"), soft_wrap=True)


def plain_table(*columns: str) -> Table:
    """A table without lines, for people and for `awk`. Print it with `show_table`."""
    return Table(*columns, box=None, pad_edge=False, header_style="bold")


def show_table(table: Table) -> None:
    """Print a table on standard output, and cut no word and no number off.

    A pipe gets one line a row. On a terminal texts are broken to its width, as far as they have more than one word.
    """
    console = out()
    wide = console.options.update(max_width=_UNBOUNDED)
    if console.is_terminal:
        for column in table.columns:
            sizes = [Measurement.get(console, wide, cell) for cell in (column.header, *column.cells)]
            column.min_width = max(size.minimum for size in sizes)
            column.no_wrap = column.min_width == max(size.maximum for size in sizes)
        console.print(table, crop=False)
        return
    console.width = Measurement.get(console, wide, table).maximum
    with console.capture() as captured:
        console.print(table, crop=False)
    for line in captured.get().splitlines():
        say(line.rstrip())

"""`llmos-stream report`: what has happened in a federation, as one page, from its log alone."""

import argparse
import asyncio
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_stream import __version__
from llmos_stream.cli.common import Commands, add_command, err, print_json, say, show_table
from llmos_stream.cli.export import check_page
from llmos_stream.cli.flags import file_path
from llmos_stream.config import Settings
from llmos_stream.reporting.wording import duration

if TYPE_CHECKING:
    from llmos_stream.log import ControlView
    from llmos_stream.reporting import History
    from llmos_stream.types import VersionHead

_QUIET_MS = 60_000


@dataclass(frozen=True, slots=True)
class _Past:
    """A federation as its log shows it, and when it was read."""

    history: "History"
    newest: "VersionHead | None"
    notices: list[str]
    """How it stands where it has not finished, and what is wrong."""
    now_ms: int


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "report",
        _run,
        text="write what has happened in a federation so far as a page, from its log",
        sections=("federation", "broker"),
        examples=(
            "  llmos-stream report                              # writes report.html\n"
            "  llmos-stream report --federation.name hospital --output hospital.html"
        ),
    )
    parser.add_argument("--output", type=file_path, metavar="FILE", help="default: report.html")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.reporting import final_table, render_report, require_plotly, write_report

    path = arguments.output or Path("report.html")
    check_page("--output", path)
    require_plotly()  # before the log is read, not after it
    with err().status("reading the log ..."):
        past = asyncio.run(_read(settings))
    text = render_report(
        past.history,
        title=f"Federation {settings.federation.name}",
        settings={} if past.newest is None else past.newest.rule,
        environment=_environment(settings, past),
        notices=past.notices,
        now_ms=past.now_ms,
    )
    write_report(path, text, "--output")
    if arguments.json:
        print_json(past.history.summary() | {"report": str(path)})
    else:
        show_table(final_table(past.history))
        say(f"wrote {path}: open it in a browser")
    return 0


async def _read(settings: Settings) -> _Past:
    """Read the log once. Raises LlmosError where there is no such federation."""
    from llmos_stream.broker import connect
    from llmos_stream.cli.process import federation_of
    from llmos_stream.log.index import version_index
    from llmos_stream.log.past import past_events
    from llmos_stream.reporting import History
    from llmos_stream.reporting.notices import notices
    from llmos_stream.runtime import Offload
    from llmos_stream.telemetry.process_metrics import passed_over

    history = History()
    async with connect(settings.broker) as broker, Offload(1) as offload:
        federation = federation_of(broker, settings, offload)
        async with federation.control() as control:
            now_ms = federation.clock.time_ms()
            async for event in past_events(federation, control.finished):
                history.add(event)
            async with version_index(broker, federation.topics.models) as index:
                newest = await index.newest()
            standing = [] if history.finish is not None else [_standing(history, control, now_ms)]
    said = [*standing, *notices(history, passed_over())]
    return _Past(history, None if newest is None else newest.head, said, now_ms)


def _standing(history: "History", control: "ControlView", now_ms: int) -> str:
    at = datetime.fromtimestamp(now_ms / 1000, UTC)
    when = f"when this page was written, {at:%Y-%m-%d %H:%M:%S} UTC"
    if control.paused:
        return f"This run was paused {when}."
    silent = 0 if history.end_ms is None else now_ms - history.end_ms
    if silent > _QUIET_MS:
        return f"This run has not finished. Its last event was {duration(silent / 1000)} old {when}."
    return f"This run was still going {when}."


def _environment(settings: Settings, past: _Past) -> dict[str, object]:
    at = datetime.fromtimestamp(past.now_ms / 1000, UTC)
    return {
        "newest version made by": {} if past.newest is None else past.newest.build,
        "broker": settings.broker.bootstrap_servers,
        "report written by": {
            "llmos_stream": __version__,
            "python": platform.python_version(),
            "at": f"{at:%Y-%m-%d %H:%M:%S} UTC",
        },
    }

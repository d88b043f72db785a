"""`llmos-stream demo`: a whole federation in one command, watched live, with a report at the end."""

import argparse
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_stream import __version__
from llmos_stream.cli.common import Commands, add_command, print_json, say, show_table
from llmos_stream.cli.export import check_page
from llmos_stream.cli.flags import file_path
from llmos_stream.cli.watched import named, run_watched
from llmos_stream.config import SECTIONS, Settings
from llmos_stream.errors import ConfigError
from llmos_stream.runtime import ExitCode

if TYPE_CHECKING:
    from llmos_stream.reporting import History

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "stop": {"target": 0.97, "patience": 60, "max_seconds": 100.0},
    "client": {"epochs": 2, "min_train_seconds": 1.0},
    # All clients share this machine: more threads inside each operation would get in one another's way.
    "runtime": {"log_level": "error", "torch_threads": 1},
}
"""The demonstration's own defaults, below flags, environment and file."""

_NAME = "demo"


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "demo",
        _run,
        text="train one model with eight unequal clients, and write report.html",
        sections=tuple(SECTIONS),
        defaults=DEFAULTS,
        shown={"federation": {"name": _NAME}},
        examples=(
            "  llmos-stream demo                    # in this process, no Kafka needed\n"
            "  llmos-stream demo --broker kafka     # a process each, over a real Kafka\n"
            "  llmos-stream demo --clients 20 --slow 5 --codec.name topk\n"
            "  llmos-stream demo --aggregation.buffer-size 8 --staleness.kind hinge\n"
            "  llmos-stream demo --resume --federation.name demo-1 --stop.target 0.98"
        ),
    )
    parser.add_argument(
        "--broker",
        choices=["embedded", "kafka"],
        help="embedded: in this process. kafka: broker.bootstrap-servers where set, else one started for the demo "
        "(Java 17 and Maven). Default: kafka where broker.bootstrap-servers is set",
    )
    parser.add_argument("--clients", type=int, default=8, help="how many clients (default: 8)")
    parser.add_argument("--slow", type=int, help="how many of them are ten times slower (default: 2 of 8)")
    parser.add_argument("--late", type=int, help="how many of them join late (default: 1 of 8)")
    parser.add_argument("--leaving", type=int, help="how many of them leave early (default: 1 of 8)")
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the demonstration that --federation.name names, which has ended or was interrupted",
    )
    report = parser.add_mutually_exclusive_group()
    report.add_argument("--report", type=file_path, metavar="FILE", help="where the report goes; default: report.html")
    report.add_argument("--no-report", action="store_true", help="write no report")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.demo import ClientMix, make_scenario
    from llmos_stream.reporting import final_table, require_plotly

    mix = ClientMix.fitting(arguments.clients, arguments.slow, arguments.late, arguments.leaving)
    report = None if arguments.no_report else arguments.report or Path("report.html")
    if report is not None:  # before the work, not after it
        require_plotly()
        check_page("--report", report)
    on_kafka = (arguments.broker or ("kafka" if settings.broker.bootstrap_servers else "embedded")) == "kafka"
    lasting = on_kafka and settings.broker.bootstrap_servers is not None
    settings = _named(settings, lasting, arguments.resume)
    watched = run_watched(
        _NAME, lambda own: make_scenario(own, mix), settings, on_kafka=on_kafka, resume=arguments.resume
    )
    history = watched.history
    if watched.code is ExitCode.DONE:
        broker = "kafka" if on_kafka else "embedded"
        summary = history.summary() | {"broker": broker, "seconds": round(watched.seconds, 2)}
        summary["report"] = None if report is None else str(report)
        if arguments.json:
            print_json(summary)
        else:
            show_table(final_table(history))
        if report is not None:
            _write_report(report, watched.settings, history, broker)
            if not arguments.json:
                say(f"wrote {report}: open it in a browser")
    return watched.code


def _named(settings: Settings, lasting: bool, resume: bool) -> Settings:
    """See `named`; and what --resume needs."""
    given = "name" in settings.federation.model_fields_set
    if resume and not (lasting and given):
        raise ConfigError(
            "--resume: only a demonstration on a Kafka that stays has left a log; name both, with "
            "--broker.bootstrap-servers and --federation.name"
        )
    return named(settings, _NAME, lasting=lasting)


def _write_report(path: Path, settings: Settings, history: "History", broker: str) -> None:
    from llmos_stream.reporting import render_report, write_report

    title, used = f"Federation {settings.federation.name}", settings.model_dump(mode="json")
    text = render_report(history, title=title, settings=used, environment=_environment(broker))
    write_report(path, text, "--report")


def _environment(broker: str) -> dict[str, str]:
    import torch

    return {
        "llmos_stream": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "platform": platform.platform(),
        "processors": str(os.cpu_count()),
        "broker": broker,
    }

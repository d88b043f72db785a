"""`llmos-stream simulate`: many clients under a virtual clock, with the rules that run on Kafka."""

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, err, note, plain_table, print_json, say, show_table
from llmos_stream.cli.flags import file_path
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.reporting.wording import duration, or_dash, plain, size

if TYPE_CHECKING:
    from llmos_stream.simulation import Experiment, Result
    from llmos_stream.simulation.runner import Listener, Told
    from llmos_stream.simulation.summary import ArmSummary


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "simulate",
        _run,
        text="compare settings on many simulated clients, under a virtual clock",
        sections=("runtime",),
        defaults={"runtime": {"log_level": "warning"}},
        examples=(
            "  llmos-stream simulate devices.toml                  # see docs/simulation.md for the file\n"
            "  llmos-stream simulate devices.toml --seeds 10 --workers 4\n"
            "  llmos-stream simulate devices.toml --set population.clients=1000 --json"
        ),
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="what is simulated: settings and arms, in TOML")
    parser.add_argument("--output", type=file_path, metavar="FOLDER", help="for all results; default: FILE's name")
    parser.add_argument("--workers", type=_count, metavar="N", help="runs side by side; default: one a core")
    parser.add_argument("--seeds", type=_count, metavar="N", help="simulation.seeds")
    parser.add_argument(
        "--set", action="append", default=[], type=_setting, metavar="NAME=VALUE", help="a setting of all arms"
    )
    parser.add_argument("--no-report", action="store_true", help="write no page")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError("a number, 1 or more")
    return int(text)


def _setting(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or "." not in name:
        raise argparse.ArgumentTypeError("section.field=value")
    return name.strip(), value.strip()


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    from llmos_stream.simulation import load_experiment
    from llmos_stream.simulation.files import write_tables
    from llmos_stream.simulation.runner import run_experiment
    from llmos_stream.simulation.summary import summarise

    overrides: dict[str, object] = dict(arguments.set)
    if arguments.seeds is not None:
        overrides["simulation.seeds"] = arguments.seeds
    experiment = load_experiment(arguments.file, overrides)
    folder = arguments.output or Path(arguments.file.stem)
    if folder.is_file():
        raise ConfigError(f"--output: {folder} is a file")
    with _progress(experiment) as listener:
        results = run_experiment(experiment, folder, arguments.workers or os.cpu_count() or 1, listener)
    summaries = summarise(experiment, results)
    files = [*_report(folder, experiment, results, summaries, arguments), *write_tables(folder, experiment, results)]
    if arguments.json:
        print_json({"name": experiment.name, "folder": str(folder), "arms": [asdict(one) for one in summaries]})
        return 0
    _show(experiment, summaries)
    say(f"wrote {', '.join(map(str, files))}")
    return 0


def _report(
    folder: Path,
    experiment: "Experiment",
    results: "Sequence[Result]",
    summaries: "Sequence[ArmSummary]",
    arguments: argparse.Namespace,
) -> list[Path]:
    """Write the page, where plotly is there and it is wanted."""
    from llmos_stream.reporting import require_plotly, write_report
    from llmos_stream.simulation.report import render_experiment

    if arguments.no_report:
        return []
    try:
        require_plotly()
    except LlmosError as error:
        note(str(error))
        return []
    path = folder / "report.html"
    write_report(path, render_experiment(experiment, results, summaries), "--output")
    return [path]


def _show(experiment: "Experiment", summaries: "Sequence[ArmSummary]") -> None:
    own = experiment.arms[0].settings.simulation
    target = "target" if own.target is None else f"{own.metric} {own.target:g}"
    table = plain_table(
        "arm",
        own.metric,
        "worst seed",
        f"reached {target}",
        "after",
        "bytes",
        "worst site",
        "staleness",
        "never folded",
    )
    for one in summaries:
        table.add_row(
            plain(one.arm),
            or_dash(one.final),
            or_dash(one.worst_seed, "{:.4g}".format),
            "-" if one.reached is None else f"{one.reached} of {one.seeds}",
            or_dash(one.seconds_to_target, duration),
            or_dash(one.bytes_to_target, lambda value: size(int(value))),
            or_dash(one.worst_site),
            or_dash(one.staleness),
            str(one.never_folded),
        )
    show_table(table)
    for how in sorted({one.training for one in summaries}):
        note(f"training: {how}")


@contextmanager
def _progress(experiment: "Experiment") -> "Iterator[Listener]":
    """A bar over all updates of all runs."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    many = len(experiment.arms) * len(experiment.seeds)
    total = sum(arm.settings.simulation.updates for arm in experiment.arms) * len(experiment.seeds)
    limits = {arm.name: arm.settings.simulation.updates for arm in experiment.arms}
    done: dict[tuple[str, int], int] = {}
    finished = 0
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[said]}"), TimeRemainingColumn())
    with Progress(*columns, console=err(), transient=True) as progress:
        bar = progress.add_task("simulating", total=total, said=f"0 of {many} runs")

        def listener(told: "Told") -> None:
            nonlocal finished
            finished += told.result is not None
            run = (told.arm, told.seed)
            done[run] = limits[told.arm] if told.result is not None else max(told.updates, done.get(run, 0))
            progress.update(bar, completed=sum(done.values()), said=f"{finished} of {many} runs")

        yield listener

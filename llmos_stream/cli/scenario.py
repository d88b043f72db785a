"""`llmos-stream scenario`: a worked example on real data, and a table of what the federation is worth there."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_stream.cli.common import Commands, add_command, err, plain_table, print_json, say, show_table
from llmos_stream.cli.export import check_page
from llmos_stream.cli.flags import file_path, given_settings
from llmos_stream.config import Settings, load
from llmos_stream.errors import ConfigError

if TYPE_CHECKING:
    from rich.table import Table

    from llmos_stream.scenarios import Study

_NAMES = ("heart", "lending", "sensors", "speeches")
_ARMS = ("pooled", "alone", "synchronous", "asynchronous", "personalised")


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "scenario",
        _run,
        text="compare a federation with its sites alone, on real data that ship with the package",
        sections=(
            *("task", "client", "aggregation", "staleness", "server_optimizer", "runtime"),
            *("federation", "broker", "codec", "stop"),
        ),
        shown={"federation": {"name": "scenario"}},
        examples=(
            "  llmos-stream scenario heart\n"
            "  llmos-stream scenario heart --task.options rows=complete   # the rows that FLamby has\n"
            "  llmos-stream scenario lending --seeds 3 --report lending.html\n"
            "  llmos-stream scenario lending --aggregation.buffer-size 1 --json\n"
            "  llmos-stream scenario speeches --seeds 1                   # with the perplexity of each author\n"
            "  llmos-stream scenario heart --broker kafka                 # a process for each hospital"
        ),
    )
    parser.add_argument("name", choices=_NAMES, help="which one")
    parser.add_argument("--seeds", type=int, help="with how many seeds each arm runs (default: 10)")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them (default: 0)")
    parser.add_argument("--seconds", type=float, help="how long the federation runs, in the scenario's clock")
    parser.add_argument(
        "--rows",
        choices=("test", "validation"),
        default="test",
        help="which rows of the sites the table is about: choose settings by validation (default: test)",
    )
    parser.add_argument("--arms", type=_arms, metavar="ARM,ARM", help="these and pooled training alone; default: all")
    parser.add_argument(
        "--broker",
        choices=("embedded", "kafka"),
        help="run the asynchronous arm once for real: with all roles in this process, or each in one of its own on "
        "broker.bootstrap-servers or on a Kafka that is started for it (Java 17 and Maven)",
    )
    parser.add_argument(
        "--tick",
        type=float,
        default=0.1,
        help="how long a second of the clock lasts with --broker, in s (default: 0.1)",
    )
    parser.add_argument("--report", type=file_path, metavar="FILE", help="write a page, with the course of each arm")


def _arms(text: str) -> tuple[str, ...]:
    arms = tuple(name.strip() for name in text.split(","))
    if unknown := set(arms) - set(_ARMS):
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}, but {', '.join(_ARMS)}")
    return arms


def _run(arguments: argparse.Namespace, _settings: Settings) -> int:
    from dataclasses import replace

    from llmos_stream.cli.scenario_live import run_live
    from llmos_stream.scenarios import SCENARIOS, run_study
    from llmos_stream.scenarios.summary import as_json
    from llmos_stream.training import use_threads

    many = 10 if arguments.seeds is None else arguments.seeds
    if many < 1 or arguments.first_seed < 0:
        raise ConfigError("--seeds: 1 or more; --first-seed: 0 or more")
    path: Path | None = arguments.report
    if path is not None:
        check_page("--report", path)
    scenario = SCENARIOS[arguments.name]
    if arguments.seconds is not None:
        if not arguments.seconds > 0:
            raise ConfigError("--seconds: more than 0")
        scenario = replace(scenario, seconds=arguments.seconds)
    settings = load(given_settings(arguments), arguments.config, _defaults(scenario.defaults))
    if arguments.broker is not None:
        return run_live(scenario, settings, arguments)
    use_threads(settings.runtime)
    seeds = range(arguments.first_seed, arguments.first_seed + many)
    with err().status(f"{scenario.name}: beginning ...") as status:
        study = run_study(
            scenario,
            settings,
            seeds,
            lambda text: status.update(f"{scenario.name}: {text}"),
            arguments.rows,
            arguments.arms or _ARMS,
        )
    if arguments.json:
        print_json(as_json(study) | {"report": None if path is None else str(path)})
    else:
        show_table(_table(study))
        if scenario.by_site:
            show_table(_by_site(study))
    if path is not None:
        _write(study, path, quiet=arguments.json)
    return 0


def _defaults(own: Any) -> dict[str, Any]:
    # Models this small are slower with several threads; and sums come out the same wherever it runs.
    return {**own, "runtime": {"log_level": "error", "torch_threads": 1}}


def _table(study: "Study") -> "Table":
    from llmos_stream.scenarios.summary import lines

    scenario = study.scenario
    table = plain_table("arm", *scenario.shown, "everywhere", "near pooled after", "updates")
    for line in lines(study):
        reached = f"{line.reached:.0f} s ({line.seeds_that_reached} of {len(study.seeds)})" if line.reached else "-"
        measured = [str(value) for value in line.at_home.values()]
        table.add_row(line.arm, *measured, str(line.everywhere), reached, f"{line.updates:.0f}")
    return table


def _by_site(study: "Study") -> "Table":
    from llmos_stream.scenarios.summary import lines

    arms = lines(study)
    table = plain_table(f"{study.scenario.metric} at", *(line.arm for line in arms))
    for site in arms[0].by_site:
        table.add_row(site, *(str(line.by_site[site]) for line in arms))
    return table


def _write(study: "Study", path: Path, *, quiet: bool) -> None:
    from llmos_stream.reporting import write_report
    from llmos_stream.scenarios.page import render_page

    write_report(path, render_page(study), "--report")
    if not quiet:
        say(f"wrote {path}: open it in a browser")

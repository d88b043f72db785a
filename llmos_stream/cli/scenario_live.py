"""`llmos-stream scenario --broker`: the sites of a scenario as clients of a real federation, as slow as it says."""

import argparse
from collections.abc import Callable
from typing import TYPE_CHECKING

from llmos_stream.cli.common import print_json, show_table
from llmos_stream.cli.watched import named, run_watched
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError
from llmos_stream.runtime import ExitCode

if TYPE_CHECKING:
    from llmos_stream.demo import Scenario as Roles
    from llmos_stream.scenarios import Scenario


def run_live(scenario: "Scenario", settings: Settings, arguments: argparse.Namespace) -> int:
    """Run the asynchronous arm with real roles, and show what the newest version reached on the test rows."""
    from llmos_stream.reporting import final_table

    if arguments.rows != "test":
        raise ConfigError("--rows: with --broker versions are measured on test rows")
    given = ("arms", "report", "seeds")
    if unused := next((name for name in given if getattr(arguments, name) is not None), None):
        raise ConfigError(f"--{unused}: leave it out with --broker, which runs the asynchronous arm once")
    if not arguments.tick > 0:
        raise ConfigError("--tick: more than 0")
    on_kafka = arguments.broker == "kafka"
    settings = named(settings, "scenario", lasting=on_kafka and settings.broker.bootstrap_servers is not None)
    settings = settings.changed(task={"seed": arguments.first_seed, "entry": scenario.entry})
    watched = run_watched("scenario", _roles(scenario, arguments.tick), settings, on_kafka=on_kafka)
    if watched.code is ExitCode.DONE:
        history = watched.history
        if arguments.json:
            last = history.scores.last
            metrics = {} if last is None else dict(last.all_metrics)
            print_json(history.summary() | {"scenario": scenario.name, "broker": arguments.broker, "metrics": metrics})
        else:
            show_table(final_table(history))
    return watched.code


def _roles(scenario: "Scenario", tick: float) -> "Callable[[Settings], Roles]":
    """A client for each site; `tick` is how long a second of the scenario's clock lasts."""

    def make(settings: Settings) -> "Roles":
        from llmos_stream.demo import Scenario as Roles

        own = scenario.task(settings.task, settings.client)
        common = settings.changed(stop={"max_seconds": tick * scenario.seconds})
        clients = [
            common.changed(
                client={
                    "data": site,
                    "id": site.replace(" ", "-"),
                    "min_train_seconds": tick * scenario.seconds_of(site, own.split(site)),
                }
            )
            for site in own.sites
        ]
        return Roles(common, tuple(clients))

    return make

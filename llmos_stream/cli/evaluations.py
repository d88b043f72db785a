"""`llmos-stream evaluations`: what versions reached, on central test data and at the sites."""

import argparse
import asyncio
from typing import TYPE_CHECKING

from llmos_stream.cli.common import Commands, add_command, plain_table, print_json, say, show_table
from llmos_stream.config import Settings
from llmos_stream.errors import NotFound
from llmos_stream.reporting.wording import count, natural, number, plain

if TYPE_CHECKING:
    from llmos_stream.reporting import History
    from llmos_stream.reporting.history.records import EvaluationPoint
    from llmos_stream.reporting.history.sites import SitePoint, VersionScores

_NAME = 40


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = add_command(
        commands,
        "evaluations",
        _run,
        text="show what each version reached, centrally and at the sites, and how the sites differ",
        sections=("federation", "broker"),
        examples=(
            "  llmos-stream evaluations                # by version, then by site\n"
            "  llmos-stream evaluations --last 5\n"
            "  llmos-stream evaluations --site ward-2  # one site's history\n"
            "  llmos-stream evaluations --json"
        ),
    )
    parser.add_argument("--site", metavar="NAME", help="show this site's history")
    parser.add_argument("--last", type=int, metavar="N", default=20, help="show the newest N versions (default: 20)")


def _run(arguments: argparse.Namespace, settings: Settings) -> int:
    history = asyncio.run(_read(settings))
    if arguments.site is not None:
        return _show_site(history, arguments.site, arguments.last, arguments.json)
    if arguments.json:
        print_json(_as_json(history))
        return 0
    central = {point.version: point for point in history.scores.in_order()}
    together = {scores.version: scores for scores in history.sites.versions()}
    if not central and not len(history.sites):
        say(
            f"federation {settings.federation.name} has no evaluation yet: clients tell what their validation data "
            "show, and `llmos-stream evaluate` measures on central test data"
        )
        return 0
    _show_versions(central, together, max(arguments.last, 1))
    if len(history.sites):
        say("")
        _show_sites(history)
        _show_models(history)
    return 0


async def _read(settings: Settings) -> "History":
    from llmos_stream.broker import connect
    from llmos_stream.cli.process import federation_of
    from llmos_stream.log.past import past_events
    from llmos_stream.reporting import History
    from llmos_stream.runtime import Offload

    history = History()
    async with connect(settings.broker) as broker, Offload(1) as offload:
        federation = federation_of(broker, settings, offload)
        async with federation.control() as control:
            async for event in past_events(federation, control.finished):
                history.add(event)
    return history


def _show_versions(central: "dict[int, EvaluationPoint]", together: "dict[int, VersionScores]", last: int) -> None:
    table = plain_table("version", "metric", "central", "mean of sites", "spread", "worst site", "its value", "sites")
    for version in sorted(central.keys() | together.keys())[-last:]:
        alone = central[version].all_metrics if version in central else {}
        said = together[version].metrics if version in together else {}
        for name in dict.fromkeys([*alone, *said]):
            value, one = alone.get(name), said.get(name)
            table.add_row(
                str(version),
                plain(name, _NAME),
                "-" if value is None else number(value),
                *(
                    ["-"] * 5
                    if one is None
                    else [
                        number(one.mean),
                        number(one.spread),
                        plain(one.worst, _NAME),
                        number(one.worst_value),
                        f"{one.sites}" + (f" ({one.not_finite} not finite)" if one.not_finite else ""),
                    ]
                ),
            )
    show_table(table)


def _show_sites(history: "History") -> None:
    from llmos_stream.reporting.site_charts import NOT_COUNTED, said_metrics, site_rows

    table = plain_table("site", "newest version", "measured", "examples", "versions measured", "")
    for row in sorted(site_rows(history), key=lambda row: (not row.counts, natural(row.client_id))):
        table.add_row(
            plain(row.client_id, _NAME),
            str(row.version),
            said_metrics(row.metrics),
            count(row.num_examples),
            count(row.measured),
            "" if row.counts else NOT_COUNTED,
        )
    show_table(table)


def _show_models(history: "History") -> None:
    from llmos_stream.reporting.site_charts import model_table, said_model

    if (found := model_table(history)) is None:
        return
    say("")
    table = plain_table(
        f"{plain(found.metric, _NAME)} of", "since version", *(plain(one, _NAME) for one in found.sites)
    )
    for row in found.rows:
        values = ["-" if value is None else number(value) for value in row.values]
        table.add_row(said_model(row), "-" if row.since is None else str(row.since), *values)
    show_table(table)


def _show_site(history: "History", name: str, last: int, as_json: bool) -> int:
    from llmos_stream.reporting.site_charts import said_metrics

    site = history.sites.get(name)
    if site is None:
        known = ", ".join(sorted((plain(one.client_id, _NAME) for one in history.sites), key=natural)[:10])
        raise NotFound(f"--site: {name} has told nothing; {known or 'no site has'}")
    points = site.in_order()
    if as_json:
        print_json({"site": name, "counts": history.sites.counts(name), "versions": [_point(one) for one in points]})
        return 0
    table = plain_table("version", "measured", "examples")
    for point in points[-max(last, 1) :]:
        said = said_metrics([*point.report.metrics.items()])
        table.add_row(str(point.version), said, count(point.report.num_examples))
    show_table(table)
    return 0


def _as_json(history: "History") -> dict[str, object]:
    return {
        "evaluator": [{"version": one.version, "metrics": one.all_metrics} for one in history.scores.in_order()],
        "sites": [
            {
                "site": site.client_id,
                "counts": history.sites.counts(site.client_id),
                "versions": [_point(one) for one in site.in_order()],
                "models": [
                    {
                        "trained_by": trainer,
                        "since": one.since,
                        "version": one.version,
                        "num_examples": one.report.num_examples,
                        "metrics": dict(one.report.metrics),
                    }
                    for trainer, one in site.models.items()
                ],
            }
            for site in history.sites
        ],
        "together": [
            {
                "version": one.version,
                "sites": one.sites,
                "num_examples": one.num_examples,
                "metrics": {name: said._asdict() for name, said in one.metrics.items()},
            }
            for one in history.sites.versions()
        ],
        "now": history.sites.summary(),
    }


def _point(point: "SitePoint") -> dict[str, object]:
    return {
        "version": point.version,
        "time_ms": point.time_ms,
        "num_examples": point.report.num_examples,
        "metrics": dict(point.report.metrics),
    }

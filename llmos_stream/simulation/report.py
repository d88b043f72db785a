"""The report of an experiment: one HTML file that opens offline, with all arms in each chart."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from llmos_stream.reporting.figures import REST, SERIES, Chart, Json, Key, axis, figure, height, label, scatter
from llmos_stream.reporting.html import charts, render_page
from llmos_stream.reporting.html_parts import escaped, section, table, values
from llmos_stream.reporting.wording import duration, or_dash, plural, size
from llmos_stream.simulation.experiment import Experiment
from llmos_stream.simulation.results import Point, Result
from llmos_stream.simulation.summary import ArmSummary

_GRID = 200
_FAINT = 10
"""So many seeds are drawn one by one at most, beside their mean."""
_SPENT: Mapping[str, tuple[str, Callable[[Point], float]]] = {
    "time": ("virtual seconds", lambda point: point.seconds),
    "updates": ("updates received", lambda point: float(point.updates)),
    "bytes": ("megabytes up and down", lambda point: (point.bytes_up + point.bytes_down) / 1e6),
}


def render_experiment(experiment: Experiment, results: Sequence[Result], summaries: Sequence[ArmSummary]) -> str:
    """The report as text.

    Raises:
        LlmosError: plotly is not installed.
    """
    by_arm: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        by_arm[result.arm].append(result)
    colours = {arm.name: f"--c{at}" if at < SERIES else REST for at, arm in enumerate(experiment.arms)}
    curves = [_curves(experiment, by_arm, colours, by) for by in _SPENT]
    bars = [_to_target(experiment, summaries, colours), _sites(experiment, summaries, colours)]
    said = f"{plural(len(experiment.arms), 'arm')}, {plural(len(experiment.seeds), 'seed')} each; virtual time."
    body = [
        '<a class="skip" href="#report">Skip to the report</a>',
        f'<header><h1>{escaped(experiment.name)}</h1><p class="muted">{escaped(said)}</p></header>',
        '<main id="report">',
        section("Summary", _summary(experiment, summaries)),
        section("What is reached", charts(curves)),
        section("Target and sites", charts(bars)),
        section(
            "Settings", "".join(values(_changed(experiment, at), arm.name) for at, arm in enumerate(experiment.arms))
        ),
        "</main>",
        "<footer><p>Written by llmos_stream. This page is one file and loads nothing.</p></footer>",
    ]
    return render_page(experiment.name, body, [*curves, *bars])


def _changed(experiment: Experiment, at: int) -> Mapping[str, object]:
    """What an arm's settings are where they are not the defaults."""
    return experiment.arms[at].settings.model_dump(mode="json", exclude_defaults=True)


def _summary(experiment: Experiment, summaries: Sequence[ArmSummary]) -> str:
    metric = experiment.arms[0].settings.simulation.metric
    names = ["arm", f"{metric}, mean and 95 % interval", "worst seed", "reached target", "time to target"]
    names += [
        "bytes to target",
        "worst site",
        "variance between sites",
        "staleness mean / p95",
        "refused",
        "never folded",
    ]
    body = "".join(
        f'<tr><th scope="row" class="t">{escaped(one.arm)}</th>'
        + "".join(f"<td>{escaped(cell)}</td>" for cell in _cells(one))
        + "</tr>"
        for one in summaries
    )
    return table("Each arm over its seeds", names, body, left=(0,))


def _cells(one: ArmSummary) -> list[str]:
    return [
        or_dash(one.final),
        or_dash(one.worst_seed, "{:.4g}".format),
        "-" if one.reached is None else f"{one.reached} of {one.seeds}",
        or_dash(one.seconds_to_target, duration),
        or_dash(one.bytes_to_target, lambda count: size(int(count))),
        or_dash(one.worst_site),
        or_dash(one.site_variance),
        f"{or_dash(one.staleness)} / {or_dash(one.staleness_p95)}",
        f"{100 * one.refused_share.mean:.1f} %",
        str(one.never_folded),
    ]


def _curves(
    experiment: Experiment, by_arm: Mapping[str, Sequence[Result]], colours: Mapping[str, str], by: str
) -> Chart:
    own = experiment.arms[0].settings.simulation
    unit, spent = _SPENT[by]
    traces: list[Json] = []
    for name, runs in by_arm.items():
        lines = [_line(run, own.metric, spent) for run in runs]
        lines = [(x, y) for x, y in lines if len(x)]
        if not lines:
            continue
        faint = {"width": 1, "color": colours[name]}
        for x, y in lines if len(lines) <= _FAINT else ():
            traces.append(scatter("lines", x.tolist(), y.tolist(), "", line=faint, opacity=0.25, hoverinfo="skip"))
        x, y = _mean(lines)
        hover = f"{label(name)}: %{{y:.4g}} after %{{x:.4g}}"
        traces.append(scatter("lines", x.tolist(), y.tolist(), hover, line={"width": 2.5, "color": colours[name]}))
    layout: Json = {"xaxis": axis(unit), "yaxis": axis(own.metric)}
    if own.target is not None:
        line = {"color": "--line", "dash": "dot"}
        layout["shapes"] = [
            {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": own.target, "y1": own.target, "line": line}
        ]
    keys = [Key(colour, "line", name) for name, colour in colours.items()]
    words = f"The mean of {own.metric} over seeds, arm by arm, and each seed as a faint line."
    return Chart(f"by-{by}", f"{own.metric.capitalize()} by {unit}", words, figure(traces, **layout), keys)


def _line(run: Result, metric: str, spent: Callable[[Point], float]) -> tuple[np.ndarray, np.ndarray]:
    points = [point for point in run.points if metric in point.metrics]
    return np.array([spent(point) for point in points]), np.array([point.metrics[metric] for point in points])


def _mean(lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """The mean of curves, as far as all of them go."""
    x = np.linspace(max(x[0] for x, _ in lines), min(x[-1] for x, _ in lines), _GRID)
    return x, np.mean([np.interp(x, *line) for line in lines], axis=0)


def _to_target(experiment: Experiment, summaries: Sequence[ArmSummary], colours: Mapping[str, str]) -> Chart:
    target = experiment.arms[0].settings.simulation.target
    found = [one for one in summaries if one.seconds_to_target is not None]
    if target is None or not found:
        why = "No target was set" if target is None else "No arm reached the target with most of its seeds"
        return Chart("to-target", why, "There is no time to show.")
    first = min(found, key=lambda one: one.seconds_to_target or 0.0)
    words = (
        f"{first.arm} reached {target:g} first, in {duration(first.seconds_to_target or 0.0)} at the median of seeds."
    )
    return Chart(
        "to-target",
        "Time to the target",
        words,
        _bars(found, [one.seconds_to_target or 0.0 for one in found], colours, "seconds"),
        height=height(len(found)),
    )


def _sites(experiment: Experiment, summaries: Sequence[ArmSummary], colours: Mapping[str, str]) -> Chart:
    found = [(one, one.worst_site) for one in summaries if one.worst_site is not None]
    if not found:
        return Chart("worst-site", "Sites were not measured", "There is nothing to show.")
    metric = experiment.arms[0].settings.simulation.metric
    worst = [estimate.mean for _, estimate in found]
    words = f"{metric.capitalize()} of the last version at the client where it is worst, the mean over seeds."
    drawn = _bars([one for one, _ in found], worst, colours, metric)
    return Chart("worst-site", "The worst site", words, drawn, height=height(len(found)))


def _bars(arms: Sequence[ArmSummary], lengths: Sequence[float], colours: Mapping[str, str], unit: str) -> Json:
    places = [*range(len(arms))]
    names = [label(one.arm) for one in arms]
    marks = {"color": [colours[one.arm] for one in arms]}
    trace: Json = {"type": "bar", "orientation": "h", "x": [*lengths], "y": places, "marker": marks}
    trace["hovertemplate"] = "%{x:.4g}<extra></extra>"
    rows = axis("", tickmode="array", tickvals=places, ticktext=names, range=[len(arms) - 0.4, -0.6], showgrid=False)
    return figure([trace], xaxis=axis(unit, rangemode="tozero"), yaxis=rows)

"""A study as a page: the table of the arms, and how the metric went in the scenario's clock."""

from collections.abc import Sequence
from html import escape
from math import isfinite
from statistics import mean

from llmos_stream.scenarios.study import Outcome, Study
from llmos_stream.scenarios.summary import lines

_WIDTH, _HEIGHT, _EDGE = 760, 320, 44
_STEPS = 100
_ROWS = {
    "test": "Test rows, by which no version was chosen",
    "validation": "Validation rows, by which versions were chosen",
}
_COLOURS = ("#0072b2", "#d55e00", "#009e73")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.3rem .8rem;border-bottom:1px solid #ccc;text-align:right}"
    "td:first-child,th:first-child{text-align:left}svg{width:100%;height:auto}"
)


def render_page(study: Study) -> str:
    """The whole document. It loads nothing."""
    scenario = study.scenario
    heads = ["", *scenario.shown, f"{scenario.metric}, one model everywhere", "near pooled after", "updates"]
    rows = []
    arms = lines(study)
    for line in arms:
        after = "" if line.reached is None else f"{line.reached:.0f} s ({line.seeds_that_reached} seeds)"
        cells = [line.arm, *map(str, line.at_home.values()), str(line.everywhere), after, f"{line.updates:.0f}"]
        rows.append(cells)
    sites = [[site, *(str(line.by_site[site]) for line in arms)] for site in arms[0].by_site]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(scenario.title)}</title>'
        f"<style>{_STYLE}</style></head><body><h1>{escape(scenario.title)}</h1>"
        f"<p>{_ROWS[study.rows]}; mean over {len(study.seeds)} seeds, with intervals of 95 %.</p>"
        f"{_table(heads, rows)}"
        f"<h2>{escape(scenario.metric)} at each site, by the model that it has</h2>"
        f"{_table(['', *(line.arm for line in arms)], sites)}"
        f"<h2>{escape(scenario.metric)} by seconds of the scenario's clock</h2>{_curves(study)}</body></html>\n"
    )


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>" for cells in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _curves(study: Study) -> str:
    """The mean over the seeds of each arm that has a clock."""
    seconds = study.scenario.seconds
    times = [seconds * step / _STEPS for step in range(_STEPS + 1)]
    curves = {
        arm: [mean(_at(one, study.scenario.metric, time) for one in outcomes) for time in times]
        for arm, outcomes in study.outcomes.items()
        if outcomes[0].points
    }
    values = [value for curve in curves.values() for value in curve]
    if not all(map(isfinite, values)):
        return "<p>There is nothing among these rows to measure it by.</p>"
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    drawn = [
        f'<text x="{_EDGE}" y="{_HEIGHT - 8}" font-size="13">0 s</text>',
        f'<text x="{_WIDTH - _EDGE}" y="{_HEIGHT - 8}" font-size="13" text-anchor="end">{seconds:g} s</text>',
        f'<text x="2" y="{_EDGE}" font-size="13">{high:.3f}</text>',
        f'<text x="2" y="{_HEIGHT - _EDGE}" font-size="13">{low:.3f}</text>',
    ]
    for number, ((arm, curve), colour) in enumerate(zip(curves.items(), _COLOURS, strict=False)):
        points = " ".join(
            f"{_EDGE + (_WIDTH - 2 * _EDGE) * step / _STEPS:.1f},"
            f"{_HEIGHT - _EDGE - (_HEIGHT - 2 * _EDGE) * (value - low) / spread:.1f}"
            for step, value in enumerate(curve)
        )
        drawn.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn.append(f'<text x="{_EDGE + 130 * number}" y="20" font-size="14" fill="{colour}">{escape(arm)}</text>')
    title = f"{study.scenario.metric} of {', '.join(curves)}"
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">{"".join(drawn)}</svg>'


def _at(outcome: Outcome, metric: str, seconds: float) -> float:
    """The metric of the newest version that was measured by then."""
    points = [point for point in outcome.points if point.seconds <= seconds]
    return float(points[-1].metrics[metric])

"""A dashboard as one HTML page, drawn from what Prometheus answers: a view of it where there is no Grafana."""

import html
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from tests.monitoring.dashboards import dashboard, fill_in
from tests.monitoring.prometheus import Prometheus

_ROW_PIXELS = 34
_INK, _PAPER, _PANEL, _LINES = "#ccccdc", "#111217", "#181b1f", "#2c3235"
_HEAT = [[0, _PANEL], [0.01, "#4a2412"], [0.5, "#d94801"], [1, "#fdd0a2"]]
_FORMATS = {
    "percentunit": (".1%", ""),
    "s": (".3~s", "s"),
    "bytes": (".3~s", "B"),
    "Bps": (".3~s", "B/s"),
    "reqps": (".3~s", "/s"),
    "ops": (".3~s", "/s"),
    "suffix: /min": ("~g", " /min"),
}
NO_DATA = "no data"
_STYLE = f"""
body {{ background: {_PAPER}; color: {_INK}; font: 14px system-ui, sans-serif; margin: 12px }}
main {{ display: grid; grid-template-columns: repeat(24, 1fr); grid-auto-rows: {_ROW_PIXELS}px; gap: 6px }}
section {{ background: {_PANEL}; border: 1px solid {_LINES}; padding: 4px 8px; overflow: hidden; min-width: 0 }}
section h3 {{ font-size: 13px; font-weight: 600; margin: 2px 0 }}
h2 {{ font-size: 15px; margin: 6px 0 0 }}
.stat {{ font-size: 34px; color: #73bf69; padding-top: 8px }}
table {{ border-collapse: collapse; font-size: 12px }}
td, th {{ border: 1px solid {_LINES}; padding: 1px 8px; text-align: left }}
"""


@dataclass(frozen=True)
class Span:
    """From when to when (seconds since the epoch), and how fine."""

    begin: float
    end: float
    step: float

    @property
    def rate_interval(self) -> str:
        return f"{max(int(4 * self.step), 5)}s"


@dataclass(frozen=True)
class _Series:
    name: str
    labels: Mapping[str, str]
    times: Sequence[float]
    values: Sequence[float]
    target: int


def draw(path: Path, prometheus: Prometheus, span: Span) -> str:
    """The dashboard in `path` as a page. Panels of which Prometheus knows nothing say so."""
    board = dashboard(path)
    boxes = "\n".join(_box(panel, prometheus, span) for panel in board["panels"])
    title = html.escape(board["title"])
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<script>{get_plotlyjs()}</script><h1>{title}</h1><main>{boxes}</main></html>"
    )


def _box(panel: dict[str, Any], prometheus: Prometheus, span: Span) -> str:
    at = panel["gridPos"]
    place = f"grid-column:{at['x'] + 1}/span {at['w']};grid-row:{at['y'] + 1}/span {at['h']}"
    if panel["type"] == "row":
        return f'<h2 style="{place}">{html.escape(panel["title"])}</h2>'
    series = list(_series(panel, prometheus, span))
    inside = _DRAWN[panel["type"]](panel, series) if series else f"<p>{NO_DATA}</p>"
    head = f'<h3 title="{html.escape(panel["description"])}">{html.escape(panel["title"])}</h3>'
    return f'<section style="{place}">{head}{inside}</section>'


def _series(panel: dict[str, Any], prometheus: Prometheus, span: Span) -> Iterator[_Series]:
    for number, target in enumerate(panel["targets"]):
        expr = fill_in(target["expr"], span.rate_interval)
        for found in prometheus.query_range(expr, span.begin, span.end, span.step):
            labels = found["metric"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda m, labels=labels: labels.get(m[1], ""), target["legendFormat"])  # type: ignore[misc]
            times = [1000 * float(time) for time, _ in found["values"]]
            values = [float(value) for _, value in found["values"]]
            if not all(map(math.isnan, values)):
                yield _Series(name, labels, times, values, number)


def _unit(panel: dict[str, Any]) -> str:
    unit: str = panel["fieldConfig"]["defaults"]["unit"]
    return unit


def _axis(unit: str) -> dict[str, Any]:
    form, suffix = _FORMATS.get(unit, (".3~s", ""))
    return {"tickformat": form, "ticksuffix": suffix, "gridcolor": _LINES, "rangemode": "tozero", "zeroline": False}


def _stat(panel: dict[str, Any], series: list[_Series]) -> str:
    value, unit = series[0].values[-1], _unit(panel)
    suffix = _FORMATS.get(unit, ("", ""))[1]
    text = f"{value:.1%}" if unit == "percentunit" else f"{value:.3g}{suffix}"
    return f'<div class="stat">{html.escape(text)}</div>'


def _table(panel: dict[str, Any], series: list[_Series]) -> str:
    names = sorted({name for one in series for name in one.labels if not name.startswith("__")})
    rows = [[one.labels.get(name, "") for name in names] for one in series]
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return "<table><tr>" + "".join(f"<th>{html.escape(name)}</th>" for name in names) + f"</tr>{cells}</table>"


def _lines(panel: dict[str, Any], series: list[_Series]) -> str:
    unit, custom = _unit(panel), panel["fieldConfig"]["defaults"]["custom"]
    own = {item["matcher"]["options"]: {p["id"]: p["value"] for p in item["properties"]} for item in _overrides(panel)}
    right = {name: properties for name, properties in own.items() if "custom.axisPlacement" in properties}
    figure = go.Figure()
    for one in series:
        figure.add_scatter(
            x=one.times,
            y=one.values,
            name=one.name,
            mode="lines",
            yaxis="y2" if one.name in right else "y",
            stackgroup="one" if custom["stacking"]["mode"] == "normal" else None,
            line={"width": 2, "dash": "dash" if one.name in right else "solid"},
        )
    second = next(iter(right.values()), {}).get("unit", unit)
    figure.update_layout(
        yaxis=_axis(unit),
        yaxis2={**_axis(second), "overlaying": "y", "side": "right", "showgrid": False, "tickmode": "auto"},
    )
    return _figure(panel, figure)


def _overrides(panel: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = panel["fieldConfig"]["overrides"]
    return found


def _heat(panel: dict[str, Any], series: list[_Series]) -> str:
    """Buckets count all below them: what lies in each is the difference to the one before."""
    ordered = sorted(series, key=lambda one: float(one.labels["le"]))
    times = sorted({time for one in ordered for time in one.times})
    at = [dict(zip(one.times, one.values, strict=True)) for one in ordered]
    below: list[float] = [0.0] * len(times)
    rows = []
    for values in at:
        present = [values.get(time, 0.0) for time in times]
        rows.append([max(here - lower, 0.0) for here, lower in zip(present, below, strict=True)])
        below = present
    figure = go.Figure(go.Heatmap(x=times, y=[one.name for one in ordered], z=rows, colorscale=_HEAT))
    figure.update_yaxes(type="category")
    return _figure(panel, figure)


def _states(panel: dict[str, Any], series: list[_Series]) -> str:
    ordered = sorted(series, key=lambda one: one.name, reverse=True)
    times = sorted({time for one in ordered for time in one.times})
    rows = [[dict(zip(one.times, one.values, strict=True)).get(time) for time in times] for one in ordered]
    colors = [[0, "#e02f44"], [0.5, "#e02f44"], [0.5, "#56a64b"], [1, "#56a64b"]]
    names = [one.name for one in ordered]
    figure = go.Figure(go.Heatmap(x=times, y=names, z=rows, zmin=0, zmax=1, colorscale=colors, showscale=False, ygap=3))
    return _figure(panel, figure)


def _figure(panel: dict[str, Any], figure: go.Figure) -> str:
    figure.update_xaxes(type="date", gridcolor=_LINES)
    figure.update_layout(
        height=panel["gridPos"]["h"] * (_ROW_PIXELS + 6) - 50,
        margin={"l": 50, "r": 40, "t": 5, "b": 20},
        paper_bgcolor=_PANEL,
        plot_bgcolor=_PANEL,
        font={"color": _INK, "size": 11},
        showlegend=panel["type"] == "timeseries",
        legend={"orientation": "h", "y": -0.15, "font": {"size": 10}},
    )
    drawn: str = figure.to_html(full_html=False, include_plotlyjs=False, config={"displayModeBar": False})
    return drawn


_DRAWN = {"stat": _stat, "table": _table, "timeseries": _lines, "heatmap": _heat, "state-timeline": _states}

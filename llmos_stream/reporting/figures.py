"""Building blocks of charts: the chart itself, its axes, its legend, and each client's colour.

Figures are plain plotly.js objects. A colour is the name of a CSS variable (`--c0`), which the page resolves when it
draws, so that charts follow the reader's light or dark theme.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llmos_stream.reporting import wording
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow

Json = dict[str, object]
SERIES = 8
"""Clients with a colour of their own; the rest are grey together."""
REST = "--rest"
LABEL_WIDTH = 18


class Key(NamedTuple):
    """An entry of a chart's legend: a colour, how it is drawn (`block`, `line`, `dash`, or a character), a label."""

    colour: str
    mark: str
    label: str


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure and its words; no figure where there is nothing to draw."""

    name: str
    title: str
    summary: str
    figure: Json | None = None
    keys: Sequence[Key] = ()
    height: int = 300


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """Time since the start of the run, in a unit that fits its length; times outside are moved to its ends."""

    start_ms: int
    end_ms: int

    @classmethod
    def of(cls, history: History) -> "TimeAxis":
        start, end = history.start_ms or 0, history.end_ms or 0
        return cls(start, max(start, end))

    @property
    def unit(self) -> tuple[int, str]:
        span = self.end_ms - self.start_ms
        for longest, milliseconds, name in ((180_000, 1000, "seconds"), (10_800_000, 60_000, "minutes")):
            if span <= longest:
                return milliseconds, name
        return (3_600_000, "hours") if span <= 3 * 86_400_000 else (86_400_000, "days")

    def at(self, time_ms: int) -> float:
        return round((min(max(time_ms, self.start_ms), self.end_ms) - self.start_ms) / self.unit[0], 4)

    @property
    def title(self) -> str:
        return f"{self.unit[1]} since the start"

    @property
    def range(self) -> list[float]:
        end = self.at(self.end_ms) or 1.0
        return [-0.02 * end, 1.02 * end]


@dataclass(frozen=True, slots=True)
class Colours:
    """The clients with the largest shares have a colour each, the same in every chart."""

    named: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Sequence[ClientRow]) -> "Colours":
        """Choose colours for `rows`, which begin with the largest share."""
        chosen = sorted((row.client.client_id for row in rows[:SERIES]), key=wording.natural)
        return cls({client_id: f"--c{index}" for index, client_id in enumerate(chosen)})

    def of(self, client_id: str | None) -> str:
        return REST if client_id is None else self.named.get(client_id, REST)

    def groups(self, total: int) -> list[tuple[str | None, str, str]]:
        """List (client, colour, label), then (None, ...) for the rest where `total` clients are more."""
        found: list[tuple[str | None, str, str]] = [
            (name, colour, wording.plain(name, LABEL_WIDTH)) for name, colour in self.named.items()
        ]
        others = total - len(self.named)
        return [*found, (None, REST, wording.plural(others, "other"))] if others > 0 else found

    def keys(self, total: int) -> list[Key]:
        return [Key(colour, "block", label) for _, colour, label in self.groups(total)]


def label(name: str) -> str:
    """Escape an untrusted name for plotly.js, which reads tags, entities and formulas between dollars."""
    short = wording.plain(name, LABEL_WIDTH)
    return short.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace("$", "&#36;")


def axis(title: str, **settings: object) -> Json:
    """Return an axis of plotly.js."""
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "gridcolor": "--grid",
        "linecolor": "--line",
        "zeroline": False,
    } | settings


def client_axis(names: Sequence[str]) -> Json:
    """Return an axis of `names` (by `label`), the first on top, as numbers: some ids look like dates to plotly.js."""
    return axis(
        "",
        tickmode="array",
        tickvals=[*range(len(names))],
        ticktext=[*names],
        range=[len(names) - 0.4, -0.6],
        showgrid=False,
    )


def height(rows: int) -> int:
    """Return the height in pixels of a chart with a row for each client."""
    return max(180, 70 + 24 * rows)


def scatter(mode: str, x: Sequence[object], y: Sequence[object], hover: str, **settings: object) -> Json:
    """Return a trace of points or of a line; `hover` is what a point says of itself."""
    return {"type": "scatter", "mode": mode, "x": x, "y": y, "hovertemplate": f"{hover}<extra></extra>"} | settings


def stacked_bars(x: Sequence[object], y: Sequence[object], colour: str, words: str, hover: str, **more: object) -> Json:
    """Return one client's bars in a stack of all."""
    marker: Json = {"color": colour, "line": {"color": "--card", "width": 0.5}}
    said: Json = {"name": label(words), "hovertemplate": f"%{{fullData.name}}: {hover}<extra></extra>"}
    return {"type": "bar", "x": x, "y": y, "marker": marker} | said | more


def figure(traces: Iterable[Json], **layout: object) -> Json:
    """Return a figure of plotly.js in the report's style."""
    common: Json = {
        "margin": {"l": 12, "r": 16, "t": 10, "b": 12},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "--muted"},
        "hoverlabel": {"bgcolor": "--card", "bordercolor": "--line", "font": {"color": "--text"}},
        "showlegend": False,
        "hovermode": "closest",
    }
    return {"data": [*traces], "layout": common | layout}

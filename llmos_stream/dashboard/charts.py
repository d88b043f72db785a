"""The page's charts: those of the report, and the aggregator's lag."""

from llmos_stream.reporting import wording
from llmos_stream.reporting.client_charts import staleness, weights
from llmos_stream.reporting.figures import Chart, Colours, Json, Key, TimeAxis, axis, figure, scatter
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.run_charts import scores_by_version, traffic
from llmos_stream.reporting.site_charts import sites


def charts(history: History) -> list[Json]:
    """List the charts with words, legend and figure, ready for JSON."""
    rows = history.rows()
    colours, time = Colours.of_rows(rows), TimeAxis.of(history)
    found = (
        scores_by_version(history),
        *([sites(history, colours)] if len(history.sites) else []),
        staleness(history, colours),
        weights(history, rows, colours),
        flow(history, time),
        traffic(history, time),
    )
    return [_plain(chart) for chart in found]


def flow(history: History, time: TimeAxis) -> Chart:
    """Chart lag and pace at each version."""
    points = [point for point in history.versions if point.lag is not None or point.pace_seconds is not None]
    if not points:
        return Chart("flow", "No lag was reported", "No version said how far behind the aggregator was.")
    last = points[-1]
    x = [time.at(point.time_ms) for point in points]
    series = (
        ("lag", "", "y", "--c0", [point.lag for point in points]),
        ("pace", " s", "y2", "--c1", [_pace(point.pace_seconds) for point in points]),
    )
    traces: list[Json] = [
        scatter("lines", x, y, f"{name} %{{y}}{unit}", xaxis="x", yaxis=place, line={"color": colour, "width": 2})
        for name, unit, place, colour, y in series
    ]
    behind = "Nothing waits" if not last.lag else f"{wording.plural(last.lag, 'record')} behind"
    pace = "clients may send as soon as they can"
    if last.pace_seconds and last.pace_seconds >= 0.05:
        pace = f"clients are asked to leave {wording.duration(last.pace_seconds)} between updates"
    return Chart(
        "flow",
        f"{behind}; {pace}",
        "Records that the aggregator had still to read when it published a version, and the pace that it asked for.",
        figure(
            traces,
            xaxis=axis(time.title, range=time.range, anchor="y2"),
            yaxis=axis("records behind", domain=[0.54, 1.0], rangemode="tozero", nticks=5),
            yaxis2=axis("pace (s)", domain=[0.0, 0.46], rangemode="tozero", nticks=5),
            hovermode="x",
        ),
        [Key("--c0", "line", "lag"), Key("--c1", "line", "pace")],
    )


def _pace(seconds: float | None) -> float | None:
    return None if seconds is None else float(f"{seconds:.4g}")


def _plain(chart: Chart) -> Json:
    return {
        "name": chart.name,
        "title": chart.title,
        "summary": chart.summary,
        "keys": [list(key) for key in chart.keys],
        "height": chart.height,
        "figure": chart.figure,
    }

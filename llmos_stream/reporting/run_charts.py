"""Charts of the run as a whole: accuracy and loss, and bytes."""

from collections.abc import Sequence

from llmos_stream.reporting import wording
from llmos_stream.reporting.figures import Chart, Json, Key, TimeAxis, axis, figure, scatter
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import EvaluationPoint

_NAMES = {"accuracy": "--c0", "loss": "--c1"}
_MARKED = 80
_FIGURES = "{:.3g}".format


def scores_by_version(history: History) -> Chart:
    """Chart accuracy and loss of each version."""
    last, best = history.scores.last, history.scores.best
    if last is None or not last.metrics:
        return Chart(
            "scores-version", "No version was evaluated", "There is no accuracy or loss to show over versions."
        )
    points = history.scores.in_order()
    said = " and ".join(f"{name} {_FIGURES(value)}" for name, value in last.metrics.items())
    summary = f"Version {last.version}, the last one evaluated, has {said}"
    if best is not None:
        summary += f"; the best accuracy is {_FIGURES(best.metrics['accuracy'])}, at version {best.version}"
    name, value = next(iter(last.metrics.items()))
    return Chart(
        "scores-version",
        f"{name.capitalize()} {_FIGURES(value)} after {wording.plural(last.version, 'version')}",
        f"{summary}.",
        _scores(points, [point.version for point in points], axis("version")),
    )


def scores_by_time(history: History, time: TimeAxis) -> Chart:
    """Chart accuracy and loss over time."""
    best, points = history.scores.best, sorted(history.scores.points, key=lambda point: point.time_ms)
    if not points or not any(point.metrics for point in points):
        return Chart("scores-time", "No evaluation in this time", "There is no accuracy or loss to show over time.")
    took = wording.duration((points[-1].time_ms - time.start_ms) / 1000)
    title, summary = f"{wording.plural(len(points), 'evaluation')} in {took}", "Accuracy and loss over time"
    if best is not None and best.metrics["accuracy"] > 0:
        close = 0.95 * best.metrics["accuracy"]
        first = next((point for point in points if point.metrics.get("accuracy", 0.0) >= close), best)
        after = wording.duration((first.time_ms - time.start_ms) / 1000)
        title = f"95 % of the best accuracy after {after}"
        summary = f"Accuracy reached {_FIGURES(close)}, 95 % of the best, {after} after the start"
    return Chart(
        "scores-time",
        title,
        f"{summary}.",
        _scores(points, [time.at(point.time_ms) for point in points], axis(time.title, range=time.range)),
    )


def _scores(points: Sequence[EvaluationPoint], x: Sequence[float], x_axis: Json) -> Json:
    names = [name for name in _NAMES if any(name in point.metrics for point in points)]
    traces: list[Json] = []
    layout: Json = {"hovermode": "x"}
    for index, name in enumerate(names, start=1):
        shown = [(at, point) for at, point in zip(x, points, strict=True) if name in point.metrics]
        number = "" if index == 1 else str(index)
        traces.append(
            scatter(
                "lines+markers" if len(shown) <= _MARKED else "lines",
                [at for at, _ in shown],
                [float(f"{point.metrics[name]:.6g}") for _, point in shown],
                f"version %{{customdata}}: {name} %{{y:.4g}}",
                customdata=[point.version for _, point in shown],
                xaxis="x",
                yaxis=f"y{number}",
                line={"color": _NAMES[name], "width": 2},
                marker={"size": 5},
            )
        )
        domain = [0.0, 1.0] if len(names) == 1 else [0.54, 1.0] if index == 1 else [0.0, 0.46]
        layout[f"yaxis{number}"] = axis(name, domain=domain, nticks=6)
    return figure(traces, xaxis=x_axis | {"anchor": "y" if len(names) == 1 else "y2"}, **layout)


def traffic(history: History, time: TimeAxis) -> Chart:
    """Chart the bytes uploaded and broadcast over time."""
    total = history.traffic
    saved = total.saved_percent
    points = [*total.points]
    if not points or not (total.sent or total.broadcast):
        return Chart("traffic", "No bytes were reported", "No update and no version with a size was reported.")
    down = f"{wording.size(total.broadcast)} of new versions were broadcast"
    if saved is None:
        title = f"{wording.size(total.broadcast)} of new versions broadcast"
        summary = f"No upload was reported; {down}."
    else:
        word = "fewer" if saved >= 0 else "more"
        title = f"{abs(saved):.0f} % {word} bytes uploaded than float32 takes"
        summary = f"Clients uploaded {wording.size(total.sent)} where float32 takes {wording.size(total.raw)}; {down}."
    lines = [("sent", "--c0", "solid", "uploaded"), ("raw", "--muted", "dot", "uploaded, were it float32")]
    lines.append(("broadcast", "--c1", "dash", "broadcast"))
    most = max(total.sent, total.raw, total.broadcast)
    scale, unit = next(((s, u) for s, u in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")) if most >= 2 * s), (1.0, "bytes"))
    traces: list[Json] = [
        scatter(
            "lines",
            [time.at(point.time_ms) for point in points],
            [float(f"{getattr(point, name) / scale:.6g}") for point in points],
            f"{words}: %{{y:.4g}} {unit}",
            line={"color": colour, "width": 2, "dash": dash, "shape": "hv"},
        )
        for name, colour, dash, words in lines
    ]
    keys = [Key(colour, {"solid": "line", "dot": "dot"}.get(dash, "dash"), words) for _, colour, dash, words in lines]
    x_axis, y_axis = axis(time.title, range=time.range), axis(f"{unit} since the start", rangemode="tozero")
    return Chart("traffic", title, summary, figure(traces, xaxis=x_axis, yaxis=y_axis, hovermode="x"), keys)

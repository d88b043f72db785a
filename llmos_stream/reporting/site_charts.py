"""What sites measured on their own data: as a chart, and as rows of tables."""

from collections.abc import Sequence
from typing import NamedTuple

from llmos_stream.reporting import wording
from llmos_stream.reporting.figures import Chart, Colours, Json, Key, axis, figure, label, scatter
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.sites import Site

NOT_COUNTED = "not counted: no update of it was folded"
_LINES = 16
_BARS = 60
_COLUMNS = 12
_MODELS = 40
_FIGURES = "{:.3g}".format


class SiteRow(NamedTuple):
    """A site in a table: the newest version that it has measured, and with which result."""

    client_id: str
    version: int
    time_ms: int
    num_examples: int
    measured: int
    """How many versions it has measured."""
    counts: bool
    """Whether it counts together with others: an update of it was folded."""
    metrics: Sequence[tuple[str, float | None]]
    """Accuracy and loss first. None: not finite."""


class ModelRow(NamedTuple):
    """What sites measured of a model: the newest versions (no name), or one that a client has trained alone."""

    trained_by: str | None
    since: int | None
    values: Sequence[float | None]
    """By site, as in `ModelTable.sites`. None: not measured, or not finite."""


class ModelTable(NamedTuple):
    """Models against sites, by one metric."""

    metric: str
    sites: Sequence[str]
    rows: Sequence[ModelRow]


def model_table(history: History, metric: str | None = None) -> ModelTable | None:
    """Return the table of models by the first metric, or by `metric`; None where nobody has trained alone."""
    trainers, now = history.sites.trainers(), history.sites.now()
    if not trainers or now is None or not now.metrics:
        return None
    metric = metric or next(iter(now.metrics))
    counting = [site for site in history.sites if history.sites.counts(site.client_id)]
    named = sorted(counting, key=lambda site: (not site.models, wording.natural(site.client_id)))[:_COLUMNS]
    rows = [ModelRow(None, None, [site.last.report.metrics.get(metric) for site in named])]
    for trainer in sorted(trainers, key=wording.natural)[:_MODELS]:
        points = [site.models.get(trainer) for site in named]
        since = max((point.since for point in points if point is not None), default=None)
        values = [None if point is None else point.report.metrics.get(metric) for point in points]
        rows.append(ModelRow(trainer, since, values))
    return ModelTable(metric, [site.client_id for site in named], rows)


def said_model(row: ModelRow) -> str:
    """Write which model it is."""
    return "the federation's" if row.trained_by is None else f"{wording.plain(row.trained_by, 40)} alone"


def site_rows(history: History) -> list[SiteRow]:
    """List the sites in their order of arrival."""
    return [
        SiteRow(
            site.client_id,
            site.last.version,
            site.last.time_ms,
            site.last.report.num_examples,
            site.count,
            history.sites.counts(site.client_id),
            list(site.last.report.metrics.items()),
        )
        for site in history.sites
    ]


def said_metrics(metrics: Sequence[tuple[str, float | None]]) -> str:
    """Write metrics for people: `accuracy 0.91, loss not finite`."""
    said = (f"{wording.plain(name, 40)} {'not finite' if v is None else wording.number(v)}" for name, v in metrics)
    return ", ".join(said)


def sites(history: History, colours: Colours) -> Chart:
    """Chart the first metric of each site by version, and their mean with the spread between them."""
    now = history.sites.now()
    if now is None or not now.metrics:
        return Chart(
            "site-scores", "No site has measured a version", "No client told what it measured on its own data."
        )
    name, said = next(iter(now.metrics.items()))
    counting = [site for site in history.sites if history.sites.counts(site.client_id)]
    ordered = sorted(counting, key=lambda site: (site.client_id not in colours.named, wording.natural(site.client_id)))
    shown = ordered[:_LINES]
    traces = [_line(site, name, colours) for site in shown]
    # A mean of few of the sites is of others than the one before it.
    most = max((one.sites for one in history.sites.versions()), default=0)
    means = [
        (one.version, one.metrics[name])
        for one in history.sites.versions()
        if name in one.metrics and 2 * one.sites >= most
    ]
    error: Json = {"type": "data", "array": [_short(one.spread) for _, one in means], "color": "--text"}
    traces.append(
        scatter(
            "lines+markers",
            [version for version, _ in means],
            [_short(one.mean) for _, one in means],
            f"version %{{x}}: mean {label(name)} %{{y:.4g}}",
            line={"color": "--text", "width": 2.5},
            marker={"size": 4, "color": "--text"},
            error_y=error | {"thickness": 1, "width": 3, "visible": len(means) <= _BARS},
        )
    )
    many = wording.plural(said.sites, "site")
    worst = f"{wording.plain(said.worst, 24)} has the worst, {_FIGURES(said.worst_value)}"
    lost = f" At {wording.plural(said.not_finite, 'site')} it is not a finite number." if said.not_finite else ""
    hidden = len(counting) - len(shown)
    more = f" The chart shows {len(shown)} of them." if hidden > 0 else ""
    keys = [Key("--text", "line", "mean, and the spread between sites")]
    keys += [Key(colours.of(site.client_id), "line", wording.plain(site.client_id, 18)) for site in shown]
    return Chart(
        "site-scores",
        f"On the sites' own data: {wording.plain(name, 24)} {_FIGURES(said.mean)} over {many}",
        f"Each site measures versions on its own validation data. At the newest ones the mean over examples is "
        f"{_FIGURES(said.mean)}, the standard deviation between sites {_FIGURES(said.spread)}; {worst}.{lost}{more}",
        figure(traces, xaxis=axis("version"), yaxis=axis(wording.plain(name, 24)), hovermode="closest"),
        keys,
    )


def _line(site: Site, name: str, colours: Colours) -> Json:
    told = [(point.version, point.report.metrics.get(name)) for point in site.in_order()]
    known = [(version, value) for version, value in told if value is not None]
    return scatter(
        "lines",
        [version for version, _ in known],
        [_short(value) for _, value in known],
        f"{label(site.client_id)}, version %{{x}}: %{{y:.4g}}",
        line={"color": colours.of(site.client_id), "width": 1.5},
    )


def _short(value: float) -> float:
    return float(f"{value:.5g}")

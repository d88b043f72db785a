"""Charts of what the clients contributed: staleness, weight, number of updates."""

from collections import Counter
from collections.abc import Sequence

from llmos_stream.reporting import wording
from llmos_stream.reporting.figures import (
    Chart,
    Colours,
    Json,
    axis,
    client_axis,
    figure,
    height,
    label,
    stacked_bars,
)
from llmos_stream.reporting.history.clients import STALENESS_CAP
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow

_ROWS = 12


def staleness(history: History, colours: Colours) -> Chart:
    """Chart how stale the folded updates were."""
    by_group: dict[str | None, Counter[int]] = {}
    for client in [*history.clients, history.clients.others]:
        group = client.client_id if client is not history.clients.others and client.client_id in colours.named else None
        by_group.setdefault(group, Counter()).update(client.histogram)
    total: Counter[int] = sum(by_group.values(), Counter())
    mean = history.staleness.value
    if not total or mean is None:
        return Chart("staleness", "No staleness was reported", "No folded update said how stale it was.")
    fresh, worst = total[0] / total.total(), max(total)
    more = " or more" if worst == STALENESS_CAP else ""
    groups = colours.groups(len(history.clients))
    traces: list[Json] = [
        stacked_bars(sorted(counts), [counts[tau] for tau in sorted(counts)], colour, words, "%{y} at staleness %{x}")
        for group, colour, words in groups
        if (counts := by_group.get(group, Counter()))
    ]
    return Chart(
        "staleness",
        f"Updates were {mean:.1f} versions stale on average",
        f"{100 * fresh:.0f} % of {wording.plural(total.total(), 'update')} were trained on the newest version, "
        f"the mean staleness is {mean:.2f}, the highest {worst}{more}.",
        figure(
            traces,
            barmode="stack",
            bargap=0.15,
            xaxis=axis("staleness (versions behind when folded)", tickformat="d", range=[-0.6, max(worst, 4) + 0.6]),
            yaxis=axis("updates"),
        ),
        colours.keys(len(history.clients)),
    )


def weights(history: History, rows: Sequence[ClientRow], colours: Colours) -> Chart:
    """Chart the clients' shares of the weight in each version."""
    ranges = history.contributions.ranges()
    if not ranges or not rows or not rows[0].share:
        return Chart("weights", "No contribution was weighed", "No folded update named its weight and its version.")
    width, groups = history.contributions.width, colours.groups(len(history.clients))
    sums: list[dict[str | None, float]] = []
    for _, by_client in ranges:
        grouped: dict[str | None, float] = {}
        for client_id, weight in by_client.items():
            key = client_id if client_id in colours.named else None
            grouped[key] = grouped.get(key, 0.0) + weight
        sums.append(grouped)
    spans = [f"version {first}" if width == 1 else f"versions {first} to {first + width - 1}" for first, _ in ranges]
    traces: list[Json] = [
        stacked_bars(
            [first + (width - 1) / 2 for first, _ in ranges],
            [round(100 * s.get(group, 0.0) / (sum(s.values()) or 1.0), 2) for s in sums],
            colour,
            words,
            "%{y:.1f} % of %{customdata}",
            width=[width] * len(ranges),
            customdata=spans,
        )
        for group, colour, words in groups
    ]
    top, many, half = rows[0], len(history.clients), _half(rows)
    name, part = wording.plain(top.client.client_id, 24), f"{100 * top.share:.0f} %"
    return Chart(
        "weights",
        f"{half} of {wording.plural(many, 'client')} carried half of the weight",
        f"Shares of the contribution weight in each version: {name} carried most, {part} over the whole run.",
        figure(
            traces,
            barmode="stack",
            bargap=0,
            xaxis=axis("version" if width == 1 else f"version (in steps of {width})"),
            yaxis=axis("% of the weight", range=[0, 100]),
        ),
        colours.keys(len(history.clients)),
    )


def _half(rows: Sequence[ClientRow]) -> int:
    share = 0.0
    for index, row in enumerate(rows, start=1):
        share += row.share
        if share >= 0.5:
            return index
    return len(rows)


def counts(history: History, rows: Sequence[ClientRow], colours: Colours) -> Chart:
    """Chart how many updates each client has in versions."""
    if not history.folded:
        return Chart("counts", "No update was folded", "No client has an update in any version.")
    clients = sorted((row.client for row in rows), key=lambda client: -client.folded)
    shown = sorted(clients[:_ROWS], key=lambda client: wording.natural(client.client_id))
    most, least = clients[0], min(clients, key=lambda client: client.folded)
    names = [label(client.client_id) for client in shown]
    trace: Json = {
        "type": "bar",
        "orientation": "h",
        "x": [client.folded for client in shown],
        "y": [*range(len(shown))],
        "text": [wording.count(client.folded) for client in shown],
        "textposition": "outside",
        "cliponaxis": False,
        "customdata": names,
        "marker": {"color": [colours.of(client.client_id) for client in shown]},
        "hovertemplate": "%{customdata}: %{x} updates<extra></extra>",
    }
    hidden = len(history.clients) - len(shown)
    note = f" The chart shows the {len(shown)} with most." if hidden else ""
    many = wording.plural(len(history.clients), "client")
    return Chart(
        "counts",
        f"{many} made {wording.plural(history.folded, 'update')}",
        f"{wording.plain(most.client_id, 24)} contributed most often, {wording.plural(most.folded, 'update')}, and "
        f"{wording.plain(least.client_id, 24)} least, {wording.count(least.folded)}.{note}",
        figure(
            [trace],
            xaxis=axis("updates folded", range=[0, 1.12 * max(1, most.folded)]),
            yaxis=client_axis(names),
            bargap=0.3,
        ),
        height=height(len(shown)),
    )

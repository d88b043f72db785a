"""The chart of the clients' presence: a row for each client, its updates as marks."""

from collections import Counter
from collections.abc import Mapping, Sequence

from llmos_stream.reporting import wording
from llmos_stream.reporting.figures import (
    REST,
    Chart,
    Colours,
    Json,
    Key,
    TimeAxis,
    axis,
    client_axis,
    figure,
    height,
    label,
    scatter,
)
from llmos_stream.reporting.history.clients import ClientStats, ClientStatus
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow, UpdatePoint

_ROWS = 30


def timeline(history: History, rows: Sequence[ClientRow], colours: Colours, time: TimeAxis) -> Chart:
    """Chart stays, joins, leaves, folded and rejected updates of the clients with the largest shares."""
    if not rows:
        return Chart("timeline", "No client took part", "No client joined and none sent an update.")
    shown = sorted((row.client.client_id for row in rows[:_ROWS]), key=wording.natural)
    place = {client_id: index for index, client_id in enumerate(shown)}
    clients = [client for client in history.clients if client.client_id in place]
    updates: dict[str, list[UpdatePoint]] = {client_id: [] for client_id in shown}
    for point in history.updates:
        if point.client_id in updates:
            updates[point.client_id].append(point)
    moves = {
        joined: [
            (at, client.client_id, words) for client in clients for at, moved in client.presence if moved is joined
        ]
        for joined, words in ((True, "joined"), (False, "left"))
    }
    refused = [
        (r.time_ms, r.client_id, f"refused: {r.reason}") for r in history.rejections.newest if r.client_id in place
    ]
    traces = [
        *(_stays(client, place[client.client_id], colours, time) for client in clients),
        *(_updates(points, place[client_id], colours, time) for client_id, points in updates.items()),
        _marks(moves[True], place, time, "triangle-right", "--text"),
        _marks(moves[False], place, time, "square", "--text"),
        _marks(refused, place, time, "x", "--bad"),
    ]
    keys = [Key(REST, "|", "update folded"), Key("--text", "▶", "joined"), Key("--text", "■", "left")]
    return Chart(
        "timeline",
        _title(history, rows),
        _summary(history, rows, len(shown)),
        figure(
            traces,
            xaxis=axis(time.title, range=time.range),
            yaxis=client_axis([label(name) for name in shown]),
        ),
        [*keys, Key("--bad", "✖", "update refused")] if refused else keys,
        height(len(shown)),
    )


def _stays(client: ClientStats, index: int, colours: Colours, time: TimeAxis) -> Json:
    x: list[float | None] = []
    for start, end in stays(client, time.end_ms):
        x += [time.at(start), time.at(end), None]
    return {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "y": [index] * len(x),
        "line": {"color": colours.of(client.client_id), "width": 12},
        "opacity": 0.25,
        "hoverinfo": "skip",
    }


def stays(client: ClientStats, end_ms: int) -> list[tuple[int, int]]:
    """List (from, to) of the client's stays; one whose end no event says lasts until `end_ms`."""
    marks = sorted(client.presence, key=lambda mark: (mark[0], not mark[1]))
    found: list[tuple[int, int]] = []
    # A client whose first join no event says came with its first event.
    start = client.first_seen_ms if not marks or not marks[0][1] else None
    for at, joined in marks:
        if joined:
            start = at if start is None else start
        elif start is not None:
            found.append((start, at))
            start = None
    if start is None and client.left_ms is not None and client.present(end_ms):
        start = client.left_ms
    return found if start is None else [*found, (start, end_ms)]


def _updates(points: Sequence[UpdatePoint], index: int, colours: Colours, time: TimeAxis) -> Json:
    client_id = points[0].client_id if points else None
    return scatter(
        "markers",
        [time.at(point.time_ms) for point in points],
        [index] * len(points),
        "%{fullData.name}: update %{customdata[0]}, staleness %{customdata[1]}",
        customdata=[[point.sequence, wording.or_dash(point.staleness)] for point in points],
        marker={"symbol": "line-ns", "size": 11, "line": {"color": colours.of(client_id), "width": 2}},
        name=label(client_id or ""),
    )


def _marks(
    marks: Sequence[tuple[int, str | None, str]], place: Mapping[str, int], time: TimeAxis, symbol: str, colour: str
) -> Json:
    named = [(at, client_id, words) for at, client_id, words in marks if client_id is not None]
    return scatter(
        "markers",
        [time.at(at) for at, _, _ in named],
        [place[client_id] for _, client_id, _ in named],
        "%{customdata[0]}: %{customdata[1]}",
        customdata=[[label(client_id), label(words)] for _, client_id, words in named],
        marker={"symbol": symbol, "size": 9, "color": colour, "line": {"color": "--card", "width": 1}},
        cliponaxis=False,
    )


def _title(history: History, rows: Sequence[ClientRow]) -> str:
    parts = [f"{wording.plural(len(history.clients), 'client')} took part"]
    if gone := sum(row.state is ClientStatus.LEFT for row in rows):
        parts.append(f"{wording.count(gone)} left {'early' if history.finish else 'since'}")
    if slow := sum(row.state is ClientStatus.SLOW for row in rows):
        parts.append(f"{wording.count(slow)} {'was' if slow == 1 else 'were'} slow")
    return ", ".join(parts)


def _summary(history: History, rows: Sequence[ClientRow], shown: int) -> str:
    states = Counter(str(row.state) for row in rows)
    said = wording.listed(f"{wording.count(n)} {state}" for state, n in sorted(states.items()))
    parts = [f"State of the clients at the end: {said}."]
    if len(history.clients) > shown:
        parts.append(f"The {shown} with most weight are shown.")
    if history.updates.stride > 1:
        parts.append(f"One update in {history.updates.stride} is drawn.")
    if history.rejections.total > len(history.rejections.newest):
        parts.append(f"Of the refusals the newest {len(history.rejections.newest)} are drawn.")
    return " ".join(parts)

"""The state of the run for a terminal: a header and a table of clients, or one line where there is no terminal."""

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from llmos_stream.reporting import wording
from llmos_stream.reporting.history.clients import ClientStatus, troubles
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow

_STYLES = {
    ClientStatus.TRAINING: "green",
    ClientStatus.SLOW: "yellow",
    ClientStatus.LATE: "bold red",
    ClientStatus.LEFT: "dim",
    ClientStatus.DONE: "green",
}
_SPARK = 8
_BAR = 5
_EIGHTHS = " ▏▎▍▌▋▊▉"


def render(history: History, *, title: str, now_ms: int, rows: int = 12) -> RenderableType:
    """Return the whole display, at least 80 columns wide, with at most `rows` clients: those with the largest share.

    Silence counts up to `now_ms`.
    """
    parts: list[RenderableType] = [Rule(Text(wording.plain(title, 60))), _header(history, now_ms)]
    if len(history.clients):
        parts.append(_clients(history, now_ms, rows))
    else:
        parts.append(Text("waiting for the first client", style="dim"))
    parts.append(_footer(history))
    return Group(*parts)


def line(history: History) -> str:
    """Return the state of the run in one line of ASCII, for logs and pipes."""
    parts = [f"version {wording.or_dash(history.version)}"]
    if history.scores.last:
        parts += [f"{name} {value:.3f}" for name, value in history.scores.last.metrics.items()]
    parts.append(f"updates {history.folded} ({history.rate.per_second():.1f}/s)")
    if history.staleness.value is not None:
        parts.append(f"staleness {history.staleness.value:.1f}")
    if history.traffic.saved_percent is not None:
        parts.append(f"saved {history.traffic.saved_percent:.0f}%")
    if history.rejections.total:
        parts.append(f"refused {history.rejections.total}")
    states = [row.state for row in history.rows()]
    parts.append(f"clients {len(history.clients)}{_troubles(states)}")
    if history.finish is not None:
        reason = wording.plain(history.finish.reason, 60).encode("ascii", "replace").decode()
        parts.append(f"finished {reason}".rstrip())
    return "  ".join(parts)


def final_table(history: History) -> Table:
    """Return the summary of a run as a table of names and values."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, value in final_rows(history):
        table.add_row(name, Text(value))
    return table


def final_rows(history: History) -> list[tuple[str, str]]:
    """List (name, value) of the summary of a run that is over, in words."""
    scores, traffic, seconds = history.scores, history.traffic, history.seconds
    rows = []
    if history.finish is not None:
        said = [part for part in (history.finish.reason, history.finish.detail) if part]
        rows.append(("finished", wording.plain(": ".join(said)) or "yes"))
    if scores.last:
        for name, value in scores.last.all_metrics.items():
            best = scores.best if name == "accuracy" else None
            beaten = best is not None and best.version != scores.last.version and best.metrics["accuracy"] > value
            note = f" (best {best.metrics['accuracy']:.4f} at version {best.version})" if best and beaten else ""
            rows.append((wording.plain(name, 40), f"{value:.4f} at version {scores.last.version}{note}"))
    now = history.sites.now()
    for name, sites in ({} if now is None else now.metrics).items():
        together = f"{sites.mean:.4f} on average over {wording.plural(sites.sites, 'site')}, spread {sites.spread:.4f}"
        rows.append((f"{wording.plain(name, 40)} at sites", together))
        rows.append(("  worst", f"{sites.worst_value:.4f} at {wording.plain(sites.worst, 40)}"))
    rate = history.updates_per_second
    updates = [f"{wording.count(history.folded)} folded"]
    if history.duplicates:
        updates.append(f"{wording.plural(history.duplicates, 'duplicate')} dropped")
    if history.rejections.total:
        reasons = ", ".join(
            f"{wording.plain(reason, 40)} {n}" for reason, n in history.rejections.by_reason.most_common(4)
        )
        updates.append(f"{wording.count(history.rejections.total)} refused ({reasons})")
    rows.append(("versions", wording.count(history.version_count)))
    rows.append(("updates", ", ".join(updates)))
    rows.append(("time", wording.duration(seconds) + (f", {wording.number(rate)} updates/s" if rate else "")))
    if history.staleness.value is not None:
        rows.append(("staleness", f"{history.staleness.value:.2f} versions on average"))
    if traffic.raw and (saved := traffic.saved_percent) is not None:
        word = "less" if saved >= 0 else "more"
        rows.append(("uploaded", f"{wording.size(traffic.sent)}, {abs(saved):.1f} % {word} than float32"))
    rows.append(("broadcast", wording.size(traffic.broadcast)))
    states = [row.state for row in history.rows()]
    rows.append(("clients", f"{wording.count(len(history.clients))}{_troubles(states)}"))
    return rows


def _header(history: History, now_ms: int) -> Text:
    parts = [Text(f"version {wording.or_dash(history.version)}", style="bold")]
    points = history.scores.in_order()
    name = "accuracy" if history.scores.best else "loss"
    values = [point.metrics[name] for point in points if name in point.metrics]
    if values:
        shown = f"{name} {values[-1]:.3f}"
        parts.append(Text.assemble((shown, "bold"), " ", (wording.sparkline(values, _SPARK), "cyan")))
    now = history.finish.time_ms if history.finish else now_ms
    parts.append(Text(f"{wording.number(history.rate.per_second(now))} updates/s"))
    parts.append(Text(f"staleness {wording.or_dash(history.staleness.value, '{:.1f}'.format)}"))
    if history.lag:
        parts.append(Text(f"{wording.count(history.lag)} records behind"))
    if history.traffic.saved_percent is not None:
        parts.append(Text(f"{history.traffic.saved_percent:.0f} % saved"))
    return Text("  ").join(parts)


def _footer(history: History) -> Text:
    counts = [f"{wording.count(history.folded)} folded"]
    if history.duplicates:
        counts.append(wording.plural(history.duplicates, "duplicate"))
    if history.rejections.total:
        reason, n = history.rejections.by_reason.most_common(1)[0]
        counts.append(f"{wording.count(history.rejections.total)} refused ({wording.plain(reason, 24)} {n})")
    counts.append(f"{wording.size(history.traffic.sent)} up")
    counts.append(f"{wording.size(history.traffic.broadcast)} down")
    if history.finish is None:
        return Text(", ".join(counts), style="dim")
    end = f"finished: {wording.plain(history.finish.reason, 60)}" if history.finish.reason else "finished"
    return Text.assemble((end, "bold"), (f"\n{', '.join(counts)}", "dim"))


def _clients(history: History, now_ms: int, limit: int) -> Table:
    rows = history.rows(now_ms)
    shown, hidden = rows[:limit], rows[limit:]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=False)
    table.add_column("client", no_wrap=True, max_width=16)
    for name in ("examples", "updates", "stale/last", "train", "seen", "share"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    most = max((row.share for row in rows), default=0.0)
    for row in sorted(shown, key=lambda row: wording.natural(row.client.client_id)):
        table.add_row(*_cells(row, most))
    more = len(history.clients) - len(shown)
    if more:
        trouble = ", ".join(troubles([row.state for row in hidden]))
        table.add_row(Text(f"… and {wording.count(more)} more", style="dim"), *[""] * 6, Text(trouble, style="dim"))
    return table


def _cells(row: ClientRow, most: float) -> list[RenderableType]:
    client = row.client
    style = "dim" if row.state is ClientStatus.LEFT else ""
    staleness = f"{wording.or_dash(client.staleness.value, '{:.1f}'.format)}/{wording.or_dash(client.last_staleness)}"
    return [
        Text(wording.plain(client.client_id, 16), style=style),
        Text(wording.or_dash(client.num_examples, wording.count)),
        Text(wording.count(client.folded)),
        Text(staleness),
        Text(wording.or_dash(client.train_seconds.value, wording.short_duration)),
        Text(wording.or_dash(row.silent_seconds, wording.short_duration)),
        Text.assemble((_bar(row.share / most if most else 0.0), "cyan"), f"{100 * row.share:4.0f} %"),
        Text(str(row.state), style=_STYLES[row.state]),
    ]


def _bar(fraction: float) -> str:
    eighths = round(fraction * _BAR * 8)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()).ljust(_BAR)


def _troubles(states: list[ClientStatus]) -> str:
    found = troubles(states)
    return f" ({', '.join(found)})" if found else ""

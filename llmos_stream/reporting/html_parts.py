"""The report's parts in HTML: heading, tiles, charts with their words, tables. They escape all text."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape

from llmos_stream.reporting import wording
from llmos_stream.reporting.figures import Chart, Colours
from llmos_stream.reporting.history.clients import troubles
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow
from llmos_stream.reporting.site_charts import NOT_COUNTED, model_table, said_metrics, said_model, site_rows

_TABLE_ROWS = 200
_REFUSALS = 50
_TALL = 24
_SECRETS = ("password", "secret", "token", "private")


def escaped(text: str) -> str:
    """Escape untrusted text for HTML text or an attribute's value in quotes."""
    return escape(wording.plain(text))


def section(title: str, content: str) -> str:
    """Return a section with its heading; `content` is HTML."""
    name = title.lower().replace(" ", "-")
    return f'<section aria-labelledby="{name}"><h2 id="{name}">{escaped(title)}</h2>{content}</section>'


def heading(history: History, title: str, notices: Sequence[str]) -> str:
    """Return the title, when the run started and ended, and what to know first."""
    if history.start_ms is None:
        said = "Nothing happened: no event was seen."
    else:
        start = datetime.fromtimestamp(history.start_ms / 1000, UTC)
        lasted = wording.duration(history.seconds)
        said = f"Started {start:%Y-%m-%d %H:%M:%S} UTC. "
        if history.finish is None:
            said += f"Not finished after {lasted}."
        else:
            why = ": ".join(part for part in (history.finish.reason, history.finish.detail) if part)
            said += f"Finished after {lasted}" + (f" ({why})." if why else ".")
    return (
        f'<a class="skip" href="#report">Skip to the report</a>\n'
        f'<header><h1>{escaped(title)}</h1><p class="muted">{escaped(said)}</p>'
        + "".join(f'<p class="notice">{escaped(text)}</p>' for text in notices)
        + "</header>"
    )


def tiles(history: History, rows: Sequence[ClientRow]) -> str:
    """Return the run in eight numbers."""
    scores, traffic, rate = history.scores, history.traffic, history.updates_per_second
    last = scores.last.metrics if scores.last else {}
    best = scores.best
    refused = history.rejections.total
    trouble = troubles([row.state for row in rows])
    saved, mean = traffic.saved_percent, history.staleness.value
    found = [
        (
            "accuracy",
            wording.or_dash(last.get("accuracy"), "{:.3f}".format),
            f"best {best.metrics['accuracy']:.3f} at version {best.version}" if best else "not evaluated",
        ),
        ("loss", wording.or_dash(last.get("loss"), wording.number), "of the last version evaluated" if last else ""),
        ("versions", wording.count(history.version_count), f"in {wording.duration(history.seconds)}"),
        ("updates folded", wording.count(history.folded), f"{wording.number(rate)} a second" if rate else ""),
        ("mean staleness", wording.or_dash(mean, "{:.2f}".format), "versions behind when folded"),
        (
            "upload saved",
            wording.or_dash(saved, "{:.0f} %".format),
            f"{wording.size(traffic.sent)} for {wording.size(traffic.raw)}" if traffic.raw else "nothing uploaded",
        ),
        ("clients", wording.count(len(history.clients)), ", ".join(trouble)),
        ("refused", wording.count(refused), f"and {wording.plural(history.duplicates, 'duplicate')} dropped"),
    ]
    shown = (
        f"<div><dt>{escaped(name)}</dt><dd>{escaped(value)}<small>{escaped(note)}</small></dd></div>"
        for name, value, note in found
    )
    return f'<dl class="tiles">{"".join(shown)}</dl>'


def chart(item: Chart, *, wide: bool) -> str:
    """Return a chart's finding as a heading, a sentence for who cannot see it, its legend, and its place."""
    keys = "".join(
        f'<li><span class="mark {key.mark if key.mark.isalpha() else ""}" style="--of: var({key.colour})" '
        f'aria-hidden="true">{"" if key.mark.isalpha() else escaped(key.mark)}</span>{escaped(key.label)}</li>'
        for key in item.keys
    )
    size = f'style="min-height: {item.height}px"'
    plot = f'<div class="plot" id="{item.name}" role="img" aria-labelledby="{item.name}-words" {size}></div>'
    return (
        f'<figure class="{"wide" if wide else "half"}"><figcaption><h3>{escaped(item.title)}</h3>'
        f'<p id="{item.name}-words">{escaped(item.summary)}</p>'
        + (f'<ul class="keys" aria-label="Legend">{keys}</ul>' if keys else "")
        + f"</figcaption>{plot if item.figure else ''}</figure>"
    )


def clients_table(history: History, rows: Sequence[ClientRow], colours: Colours) -> str:
    """Return the table of clients."""
    if not rows:
        return '<p class="muted">No client was seen.</p>'
    most = rows[0].share
    body = []
    for row in sorted(rows[:_TABLE_ROWS], key=lambda row: wording.natural(row.client.client_id)):
        client = row.client
        colour = f"--of: var({colours.of(client.client_id)})"
        width = 100 * row.share / most if most else 0.0
        cells = [
            wording.or_dash(client.num_examples, wording.count),
            wording.count(client.folded),
            wording.count(client.rejected),
            wording.count(client.duplicates),
            f"{wording.or_dash(client.staleness.value, '{:.1f}'.format)} / {wording.or_dash(client.last_staleness)}",
            wording.or_dash(client.train_seconds.value, wording.duration),
            wording.size(client.bytes_sent),
        ]
        body.append(
            f'<tr><th scope="row" class="t"><span class="mark block" style="{colour}" aria-hidden="true"></span>'
            f"{escaped(client.client_id)}</th>"
            + "".join(f"<td>{escaped(cell)}</td>" for cell in cells)
            + f'<td><span class="bar" aria-hidden="true"><span style="{colour}; width: {width:.0f}%"></span></span>'
            f'{100 * row.share:.1f} %</td><td class="t {row.state}">{row.state}</td></tr>'
        )
    hidden = len(history.clients) - len(body)
    more = f'<tr><td class="t" colspan="10">… and {wording.count(hidden)} more</td></tr>' if hidden else ""
    names = ["client", "examples", "updates", "refused", "duplicates", "staleness mean / last", "training", "uploaded"]
    return table("Each client", [*names, "share of weight", "state"], "".join(body) + more, left=(0, 9))


def sites_tables(history: History) -> str:
    """Return what the sites say together, and what each has measured of its newest version."""
    now = history.sites.now()
    together = "".join(
        f'<tr><th scope="row" class="t">{escaped(name)}</th><td>{wording.number(said.mean)}</td>'
        f"<td>{wording.number(said.spread)}</td><td>{escaped(said.worst)}</td>"
        f"<td>{wording.number(said.worst_value)}</td><td>{said.sites}</td><td>{said.not_finite}</td></tr>"
        for name, said in ({} if now is None else now.metrics).items()
    )
    rows = sorted(site_rows(history), key=lambda row: (not row.counts, wording.natural(row.client_id)))
    body = "".join(
        f'<tr><th scope="row" class="t">{escaped(row.client_id)}</th><td>{row.version}</td>'
        f'<td class="t">{escaped(said_metrics(row.metrics))}</td><td>{wording.count(row.num_examples)}</td>'
        f'<td>{wording.count(row.measured)}</td><td class="t">{"" if row.counts else NOT_COUNTED}</td></tr>'
        for row in rows[:_TABLE_ROWS]
    )
    hidden = len(rows) - _TABLE_ROWS
    more = f'<tr><td class="t" colspan="6">… and {wording.count(hidden)} more</td></tr>' if hidden > 0 else ""
    names = ["metric", "mean over examples", "spread between sites", "worst site", "its value", "sites", "not finite"]
    each = ["site", "newest version", "measured", "examples", "versions measured", ""]
    return (
        table("Together, each site at its newest version", names, together, left=(0, 3))
        + table("Each site on its own validation data", each, body + more, left=(0, 2, 5))
        + _models_table(history)
    )


def _models_table(history: History) -> str:
    found = model_table(history)
    if found is None:
        return ""
    body = "".join(
        f'<tr><th scope="row" class="t">{escaped(said_model(row))}</th><td>{wording.or_dash(row.since)}</td>'
        + "".join(f"<td>{wording.or_dash(value, wording.number)}</td>" for value in row.values)
        + "</tr>"
        for row in found.rows
    )
    title = f"{found.metric} of the federation's model and of those trained alone, on each site's validation data"
    return table(title, ["model", "since version", *found.sites], body, left=(0,))


def rejections(history: History) -> str:
    """Return the tables of rejected updates."""
    if not history.rejections.total:
        return '<p class="muted">No update was refused.</p>'
    reasons = "".join(
        f'<tr><th scope="row" class="t">{escaped(reason)}</th><td>{wording.count(n)}</td></tr>'
        for reason, n in history.rejections.by_reason.most_common()
    )
    newest = [*history.rejections.newest][-_REFUSALS:][::-1]
    start = history.start_ms or 0
    body = "".join(
        f"<tr><td>{wording.duration(max(0, item.time_ms - start) / 1000)}</td>"
        f'<td class="t">{escaped(wording.or_dash(item.client_id))}</td><td>{wording.or_dash(item.sequence)}</td>'
        f'<td class="t">{escaped(item.reason)}</td><td class="w">{escaped(item.detail)}</td>'
        f"<td>{wording.or_dash(item.partition)} / {wording.or_dash(item.offset)}</td></tr>"
        for item in newest
    )
    names = ["after", "client", "sequence", "reason", "detail", "partition / offset"]
    title = "Each refusal, the newest first" if len(newest) == history.rejections.total else f"The newest {len(newest)}"
    return table("By reason", ["reason", "updates"], reasons, left=(0,), small=True) + table(
        title, names, body, left=(1, 3, 4)
    )


def values(mapping: Mapping[str, object], title: str) -> str:
    """Return a table of nested values with dotted names, without secrets."""
    found = [*_flat(mapping)]
    if not found:
        return '<p class="muted">None were given.</p>'
    body = "".join(
        f'<tr><th scope="row" class="t">{escaped(name)}</th><td class="w">{escaped(value)}</td></tr>'
        for name, value in found
    )
    return (
        f'<details class="card"><summary>{escaped(title)} ({len(found)})</summary>'
        f"{table('', ['name', 'value'], body, left=(0, 1))}</details>"
    )


def _flat(mapping: Mapping[str, object], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat(value, f"{name}.")
        elif value is None:
            yield name, "unset"
        elif any(word in str(key).lower() for word in _SECRETS):
            yield name, "(hidden)"
        else:
            yield name, str(value)


def table(title: str, names: Sequence[str], body: str, left: Sequence[int], small: bool = False) -> str:
    """Return a table of rows in HTML; `left` are the columns of words."""
    head = "".join(
        f'<th scope="col" class="{"t" if index in left else "n"}">{escaped(name)}</th>'
        for index, name in enumerate(names)
    )
    caption = f"<caption>{escaped(title)}</caption>" if title else ""
    kind = "small" if small else "tall" if body.count("<tr>") > _TALL else ""
    return (
        f'<div class="scroll card {kind}" tabindex="0" role="region" aria-label="{escaped(title or "Values")}">'
        f"<table>{caption}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )

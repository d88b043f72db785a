"""The report: one HTML file that opens offline, with charts, tables and the settings of the run.

Client ids, reasons and details come from outside. They are escaped where they become HTML, chart text or JSON. The
page's policy allows its own two scripts only, and loads nothing.
"""

import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path

import orjson

from llmos_stream.errors import LlmosError, install
from llmos_stream.reporting import template
from llmos_stream.reporting.client_charts import counts, staleness, weights
from llmos_stream.reporting.figures import Chart, Colours, TimeAxis
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.html_parts import (
    chart,
    clients_table,
    escaped,
    heading,
    rejections,
    section,
    sites_tables,
    tiles,
    values,
)
from llmos_stream.reporting.run_charts import scores_by_time, scores_by_version, traffic
from llmos_stream.reporting.site_charts import sites
from llmos_stream.reporting.timeline import timeline

_WIDE = frozenset({"timeline"})


def require_plotly() -> str:
    """Return the text of plotly.js.

    Raises:
        LlmosError: plotly is not installed; the message says how to install it.
    """
    try:
        from plotly.offline import get_plotlyjs  # noqa: PLC0415 (an extra)
    except ImportError:
        raise LlmosError(f"the HTML report needs plotly; {install('demo')}") from None
    return str(get_plotlyjs())


def write_report(path: Path, text: str, flag: str) -> None:
    """Write a report to `path`, whole or not at all, and make missing folders.

    Raises:
        LlmosError: The file cannot be written; the message says why, after the `flag` that named it.
    """
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            unfinished.write_bytes(text.encode("utf-8", "replace"))
            unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)
    except OSError as error:
        raise LlmosError(f"{flag}: cannot write {path}: {error.strerror or error}") from error


def render_report(
    history: History,
    *,
    title: str,
    settings: Mapping[str, object],
    environment: Mapping[str, object],
    notices: Sequence[str] = (),
    now_ms: int | None = None,
) -> str:
    """Return the report as text.

    Args:
        history: The run.
        title: The page's title.
        settings: Listed in the page; nested ones get dotted names.
        environment: Listed in the page.
        notices: What to know first, in sentences: how a run stands that has not finished, and what is wrong.
        now_ms: When the page is written. Clients that are silent then are late; by default as of the last event.

    Raises:
        LlmosError: plotly is not installed.
    """
    rows = history.rows(now_ms)
    colours, time = Colours.of_rows(rows), TimeAxis.of(history)
    model = [scores_by_version(history), scores_by_time(history, time)]
    people = [weights(history, rows, colours), counts(history, rows, colours), timeline(history, rows, colours, time)]
    flow = [staleness(history, colours), traffic(history, time)]
    local = [sites(history, colours)]
    body = [
        heading(history, title, notices),
        '<main id="report">',
        "<noscript><p>Charts need JavaScript; the words under each title say what its chart shows.</p></noscript>",
        section("Summary", tiles(history, rows)),
        section("Accuracy and loss", charts(model)),
        *([section("Sites", charts(local) + sites_tables(history))] if len(history.sites) else []),
        section("Clients", charts(people) + clients_table(history, rows, colours)),
        section("Staleness and bytes", charts(flow)),
        section("Refused updates", rejections(history)),
        section("Settings", values(settings, "Settings of the run")),
        section("Environment", values(environment, "Where it ran")),
        "</main>",
        "<footer><p>Written by llmos_stream. This page is one file and loads nothing.</p></footer>",
    ]
    return render_page(title, body, [*model, *local, *people, *flow])


def render_page(title: str, body: Sequence[str], items: Sequence[Chart]) -> str:
    """Return a page of these parts (HTML), whose charts are `items`.

    Raises:
        LlmosError: plotly is not installed.
    """
    scripts = [_inline(require_plotly()), _inline(template.SCRIPT)]
    figures = {item.name: item.figure for item in items if item.figure is not None}
    return template.page(
        title=escaped(title),
        policy=_policy(scripts),
        body="\n".join(body),
        figures=_json(figures),
        scripts=scripts,
    )


def charts(items: Sequence[Chart]) -> str:
    """Return charts beside one another, in HTML."""
    return f'<div class="charts">{"".join(chart(item, wide=item.name in _WIDE) for item in items)}</div>'


def _inline(script: str) -> str:
    # A browser hashes the parsed script: its line ends are \n, and nothing in it may end the element.
    return script.replace("\r\n", "\n").replace("</script", "<\\/script").replace("<!--", "<\\!--")


def _policy(scripts: list[str]) -> str:
    hashes = " ".join(f"'sha256-{b64encode(sha256(script.encode()).digest()).decode()}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {hashes}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'"
    )


def _json(value: object) -> str:
    text = orjson.dumps(value).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text

import base64
import hashlib
import itertools
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.errors import LlmosError
from llmos_stream.reporting import History, render_report, require_plotly, write_report
from llmos_stream.types import Event, EventKind
from tests.reporting.fake import START_MS, Federation

VOID = {"meta", "br", "img", "link", "input", "hr"}
CHARTS = ["scores-version", "scores-time", "weights", "counts", "timeline", "staleness", "traffic"]


class Page(HTMLParser):
    """A page taken apart; fails where an element is not closed in its place."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            attrs, text = self.scripts[-1]
            self.scripts[-1] = (attrs, text + data)
        elif self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def figures(self) -> dict[str, Any]:
        found = [text for attrs, text in self.scripts if attrs.get("id") == "figures"]
        figures = json.loads(found[0])
        assert isinstance(figures, dict)
        return figures

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attrs for name, attrs in self.elements if name == tag]


def report(history: History, settings: Mapping[str, object] | None = None, title: str = "digits") -> str:
    return render_report(history, title=title, settings=settings or {}, environment={"python": "3.11"})


@pytest.fixture(scope="module")
def history() -> History:
    return Federation().history()


@pytest.fixture(scope="module")
def text(history: History) -> str:
    return report(history, {"codec": {"name": "int8", "block": 256}, "stop": {"target": None}})


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def strings(node: object, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict):
        for name, item in node.items():
            yield from strings(item, name)
    elif isinstance(node, list):
        for item in node:
            yield from strings(item, key)
    elif isinstance(node, str):
        yield key, node


def test_plotly_is_inlined_exactly_once_and_nothing_else_refers_to_a_network(text: str) -> None:
    bundle = require_plotly()
    assert text.count(bundle) == 1
    rest = text.replace(bundle, "")
    assert "Plotly.react(" in rest
    assert not re.search(
        r"https?:|//[a-z]|\b(src|srcset|action|poster)\s*=|@import|url\(|<link|<base|<iframe|<img", rest, re.I
    )
    assert set(re.findall(r'href="([^"]*)"', rest)) == {"#report"}


def test_the_page_itself_forbids_every_request_and_every_other_script(page: Page) -> None:
    policies = [a["content"] or "" for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    rules = {name: values for name, *values in (rule.split() for rule in policies[0].split("; "))}
    assert rules["default-src"] == ["'none'"]
    assert not any("unsafe" in value or ":" in value for value in rules["script-src"])
    executable = [script for attrs, script in page.scripts if attrs.get("type") != "application/json"]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in executable]
    assert rules["script-src"] == [f"'sha256-{value}'" for value in hashes]
    assert len(executable) == 2
    assert all(script.isascii() or script == require_plotly() for script in executable)


def test_it_has_a_title_a_language_and_headings_in_order(page: Page) -> None:
    names = [name for name, _ in page.elements]
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("meta")[0] == {"charset": "utf-8"}
    levels = [int(name[1]) for name in names if re.fullmatch("h[1-6]", name)]
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    assert {"header", "main", "footer", "noscript"} <= set(names)


def test_every_chart_has_a_place_and_words_that_stand_for_it(page: Page) -> None:
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(ids) == len(set(ids))
    images = [attrs for _, attrs in page.elements if attrs.get("role") == "img"]
    assert [attrs["id"] for attrs in images] == CHARTS == list(page.figures)
    for _, attrs in page.elements:
        assert attrs.get("aria-labelledby") is None or attrs["aria-labelledby"] in ids
    assert all(attrs["aria-labelledby"] == f"{attrs['id']}-words" for attrs in images)


def test_what_scrolls_can_be_reached_by_keyboard(page: Page) -> None:
    scrolling = [attrs for _, attrs in page.elements if "scroll" in (attrs.get("class") or "").split()]
    assert len(scrolling) == len(page.all("table")) == 5
    assert all(attrs["tabindex"] == "0" and attrs["aria-label"] for attrs in scrolling)
    assert all(attrs["scope"] in ("col", "row") for attrs in page.all("th"))


def test_titles_say_the_findings(page: Page, history: History) -> None:
    last = history.scores.last
    assert last is not None
    for words in (
        f"Accuracy {last.metrics['accuracy']:.3g} after 41 versions",
        "95 % of the best accuracy after 22 s",
        "2 of 8 clients carried half of the weight",
        "8 clients made 164 updates",
        "8 clients took part, 1 left early, 1 was slow",
        "Updates were 1.3 versions stale on average",
        "74 % fewer bytes uploaded than float32 takes",
        "Finished after 40 s (target: accuracy 0.97 reached 0.97).",
    ):
        assert words in page.text


def test_settings_and_environment_are_shown(page: Page) -> None:
    for words in ("codec.name int8", "codec.block 256", "stop.target unset", "python 3.11"):
        assert words in page.text


def test_secrets_are_not(history: History) -> None:
    text = report(history, {"broker": {"sasl_password": "hunter2", "sasl_username": "me"}, "API_TOKEN": "hunter2"})
    assert "hunter2" not in text
    assert Page(text).text.count("(hidden)") == 2


def test_the_figures_are_valid_plotly(page: Page) -> None:
    from plotly import graph_objects  # noqa: PLC0415 (slow to import)

    def painted(node: Any, key: str = "") -> Any:
        if isinstance(node, dict):
            return {name: painted(item, name) for name, item in node.items()}
        if isinstance(node, list):
            return [painted(item, key) for item in node]
        return "#123456" if isinstance(node, str) and node.startswith("--") and key.endswith("color") else node

    for figure in page.figures.values():
        graph_objects.Figure(painted(figure))


def test_the_figures_hold_the_numbers_of_the_run(page: Page, history: History) -> None:
    figures = page.figures
    accuracy, loss = figures["scores-version"]["data"]
    points = history.scores.in_order()
    assert accuracy["x"] == [point.version for point in points]
    assert accuracy["y"] == pytest.approx([point.metrics["accuracy"] for point in points], rel=1e-5)
    assert loss["y"] == pytest.approx([point.metrics["loss"] for point in points], rel=1e-5)
    bars = figures["weights"]["data"]
    assert [sum(heights) for heights in zip(*(bar["y"] for bar in bars), strict=True)] == pytest.approx(
        [100] * 21, abs=0.1
    )
    assert sum(figures["counts"]["data"][0]["x"]) == history.folded
    assert sum(sum(bar["y"]) for bar in figures["staleness"]["data"]) == history.folded
    mean = sum(x * y for bar in figures["staleness"]["data"] for x, y in zip(bar["x"], bar["y"], strict=True)) / 164
    assert mean == pytest.approx(history.staleness.value)
    uploaded, raw, broadcast = (line["y"] for line in figures["traffic"]["data"])
    traffic = history.traffic
    assert [uploaded[-1], raw[-1], broadcast[-1]] == pytest.approx(
        [traffic.sent / 1e6, traffic.raw / 1e6, traffic.broadcast / 1e6], rel=1e-4
    )
    marks = figures["timeline"]["data"][8:16]
    assert sum(len(trace["x"]) for trace in marks) == history.folded
    joined, left, refused = figures["timeline"]["data"][16:]
    assert (len(joined["x"]), len(left["x"]), len(refused["x"])) == (8, 8, 10)


def test_a_stay_lasts_from_the_join_to_the_leave(page: Page) -> None:
    stays = page.figures["timeline"]["data"][:8]
    joins, leaves = page.figures["timeline"]["data"][16:18]
    for index, stay in enumerate(stays):
        start = joins["x"][joins["y"].index(index)]
        end = leaves["x"][leaves["y"].index(index)]
        assert stay["x"] == [start, end, None]


def test_a_client_has_one_colour_in_every_chart(page: Page) -> None:
    figures = page.figures
    of = {f"client-{index}": f"--c{index}" for index in range(8)}
    for chart in ("weights", "staleness"):
        assert all(bar["marker"]["color"] == of[bar["name"]] for bar in figures[chart]["data"])
    counts = figures["counts"]["data"][0]
    assert dict(zip(counts["customdata"], counts["marker"]["color"], strict=True)) == of
    for trace in figures["timeline"]["data"][8:16]:
        assert trace["marker"]["line"]["color"] == of[trace["name"]]


def test_every_colour_is_a_variable_of_both_themes(page: Page, text: str) -> None:
    used = {value for key, value in strings(page.figures) if key.endswith("color")}
    names = {value for value in used if value.startswith("--")}
    assert used - names == {"rgba(0,0,0,0)"}
    style = text[text.index("<style>") : text.index("</style>")]
    for theme in style.split("prefers-color-scheme: dark"):
        assert all(f"{name}: #" in theme for name in names)
    assert all(re.search(f"var\\({name}\\)", text) for name in ("--c0", "--text", "--page"))


def test_many_clients_share_a_grey_and_a_row_count() -> None:
    history = Federation(clients=104, versions=120).history()
    page = Page(report(history))
    bars = page.figures["weights"]["data"]
    assert [bar["name"] for bar in bars][-1] == "96 others"
    assert len(bars) == 9
    assert len(page.figures["counts"]["data"][0]["x"]) == 12
    assert len(page.figures["timeline"]["layout"]["yaxis"]["ticktext"]) == 30
    assert sum(sum(bar["y"]) for bar in page.figures["staleness"]["data"]) == history.folded


def test_a_cap_on_rows_shows_as_more() -> None:
    history = History(client_limit=250)
    for index in range(300):
        history.add(Event(EventKind.CLIENT_JOINED, "c", START_MS, {"client_id": f"c{index}"}))
    assert "… and 100 more" in Page(report(history)).text


HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"'><a href='https://evil.example'>x</a>",
    "%{x} &amp; &lt;b&gt; <b>",
    "<!--<script>",
    "constructor",
    "\u202e\x1b[31m\u2028\n",
    "$a$ --c0",
]


def test_hostile_text_stays_text() -> None:
    history = History()
    for event in Federation().events:
        data = {**event.data}
        if data.get("client_id"):
            data["client_id"] = HOSTILE[int(str(data["client_id"])[-1])]
        for name in ("reason", "detail"):
            if name in data:
                data[name] = HOSTILE[event.time_ms % 8]
        history.add(Event(event.kind, event.role, event.time_ms, data))
    hostile = {text: text for text in HOSTILE}
    text = render_report(history, title=HOSTILE[1], settings=hostile, environment=hostile)
    plain, page = Page(report(Federation().history())), Page(text)
    ordinary = {name for name, _ in plain.elements}
    assert {name for name, _ in page.elements} <= ordinary
    assert len(page.scripts) == 3
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert page.figures.keys() == plain.figures.keys()
    for shown in HOSTILE[:6]:
        assert shown in page.text
    assert not {"\u202e", "\x1b", "\u2028"} & set(text.replace(require_plotly(), ""))
    # plotly.js reads tags in any text, entities in text without tags, and formulas between dollars.
    ours = {"hovertemplate"}
    assert not any("<" in value or "$" in value for key, value in strings(page.figures) if key not in ours)
    templates = {value for key, value in strings(page.figures) if key in ours}
    assert templates == {value for key, value in strings(plain.figures) if key in ours}
    assert not any(value == "--c0" for key, value in strings(page.figures) if not key.endswith("color"))


def test_nothing_happened() -> None:
    page = Page(report(History()))
    assert "Nothing happened: no event was seen." in page.text
    assert "No update was refused." in page.text
    assert page.figures == {}
    assert not [attrs for _, attrs in page.elements if attrs.get("role") == "img"]


@pytest.mark.parametrize("count", [1, 2, 9, 12, 30, 200])
def test_a_report_can_be_written_at_any_moment(count: int) -> None:
    history = History()
    for event in Federation().events[:count]:
        history.add(event)
    assert "Not finished after" in Page(report(history)).text


def test_a_run_under_way_is_marked_and_its_clients_are_as_of_now() -> None:
    history = History()
    for event in sorted(Federation().events, key=lambda event: event.time_ms)[:60]:
        history.add(event)
    standing = "This run was still going <now>."
    now_ms = (history.end_ms or 0) + 600_000
    text = render_report(history, title="t", settings={}, environment={}, notices=[standing], now_ms=now_ms)
    page = Page(text)
    assert standing in page.text
    assert [attrs for attrs in page.all("p") if attrs.get("class") == "notice"]
    assert " late " in page.text
    assert " late " not in Page(report(history)).text


@pytest.mark.parametrize("kind", EventKind)
def test_one_event_alone_makes_a_page(kind: EventKind) -> None:
    history = History()
    resumed = Event(EventKind.RUN_RESUMED, "aggregator", START_MS, {"version": 0})  # an uninterrupted run has none
    history.add(next(event for event in [*Federation().events, resumed] if event.kind is kind))
    Page(report(history))


def test_a_run_of_days_counts_in_days() -> None:
    history = History()
    for day in range(10):
        data = {"version": day, "metrics": {"accuracy": 0.5, "loss": 1.0}}
        history.add(Event(EventKind.EVALUATION, "e", START_MS + day * 86_400_000, data))
    figure = Page(report(history)).figures["scores-time"]
    assert figure["data"][0]["x"] == list(range(10))
    assert figure["layout"]["xaxis"]["title"]["text"] == "days since the start"


def test_the_same_history_gives_the_same_bytes(history: History, text: str) -> None:
    assert report(history, {"codec": {"name": "int8", "block": 256}, "stop": {"target": None}}) == text


def test_it_is_written_whole_where_asked(tmp_path: Path, history: History) -> None:
    path = tmp_path / "new" / "report.html"
    write_report(path, report(history), "--report")
    assert path.read_text(encoding="utf-8") == report(history)
    write_report(path, report(History(), title="again"), "--report")
    assert "Nothing happened" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_report_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "report.html").mkdir()
    with pytest.raises(LlmosError, match=r"^--output: cannot write .*report\.html: Is a directory"):
        write_report(tmp_path / "report.html", "text", "--output")
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


def test_without_plotly_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    with pytest.raises(LlmosError, match=r"pip install -e '.\[demo\]'"):
        report(History())


def test_the_room_loads_neither_plotly_nor_torch() -> None:
    code = "import sys, llmos_stream.reporting; print({'plotly', 'torch', 'aiokafka', 'asyncio'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_no_chart_is_drawn_into_a_section_of_its_name() -> None:
    history = History()
    for version, client in enumerate("ab", start=1):
        data = {"client_id": client, "sequence": 1, "version": version, "weight": 1.0}
        history.add(Event(EventKind.UPDATE_FOLDED, "aggregator", version, data))
        told = {"client_id": client, "version": version, "metrics": {"accuracy": 0.5}, "num_examples": 9}
        history.add(Event(EventKind.EVALUATION, "client", version, told))
    page = render_report(history, title="t", settings={}, environment={})
    own = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    names = re.findall(r'\bid="([^"]+)"', own)
    assert "site-scores" in names
    assert len(names) == len(set(names))

"""The dashboards: whole, tidy, and asking for what is exported."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.monitoring import exported
from tests.monitoring.dashboards import (
    DASHBOARDS,
    DOCKER,
    PROMETHEUS,
    alerts,
    dashboard,
    label_names,
    metric_names,
    panels,
    queries,
)
from tests.monitoring.tools import promtool

each = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)


def test_there_are_three_with_names_of_their_own() -> None:
    assert [path.stem for path in DASHBOARDS] == ["federation", "inference", "processes"]
    assert len({dashboard(path)["uid"] for path in DASHBOARDS}) == 3
    assert len({dashboard(path)["title"] for path in DASHBOARDS}) == 3


@each
def test_it_loads_into_grafana_from_a_file(path: Path) -> None:
    board = dashboard(path)
    assert board["schemaVersion"] == 39
    assert board["uid"].startswith("llmos-")
    assert "id" not in board  # Grafana gives it
    assert board["templating"]["list"][0]["type"] == "datasource"


@each
def test_every_panel_says_what_it_shows(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"], panel
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}"
        assert panel["targets"], panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}"
            assert target["legendFormat"] or panel["type"] == "table", panel["title"]


@each
def test_ids_and_titles_are_there_once(path: Path) -> None:
    every = dashboard(path)["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    assert len({panel["title"] for panel in panels(path)}) == len(panels(path))
    for panel in panels(path):
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@each
def test_panels_lie_on_the_grid_and_none_on_another(path: Path) -> None:
    boxes = [panel["gridPos"] for panel in dashboard(path)["panels"]]
    for box in boxes:
        assert min(box["x"], box["y"]) >= 0
        assert box["w"] >= 4
        assert box["x"] + box["w"] <= 24
    assert not [pair for pair in itertools.combinations(boxes, 2) if _overlap(*pair)]


def _overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


@each
def test_prometheus_can_read_every_query(path: Path, tmp_path: Path) -> None:
    rules = [{"record": f"q:{number}", "expr": query.expr} for number, query in enumerate(queries(path))]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": path.stem, "rules": rules}]}))
    done = promtool("check", "rules", file)
    assert done.returncode == 0, done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_the_queries_ask_for_what_is_exported() -> None:
    known = exported.names() | exported.OURS
    asked = [query.expr for path in DASHBOARDS for query in queries(path)] + [rule["expr"] for rule in alerts()]
    assert len(asked) > 60
    for expr in asked:
        assert metric_names(expr), expr
        assert metric_names(expr) <= known, expr
        assert label_names(expr) <= exported.LABELS, expr


@pytest.mark.parametrize(
    ("expr", "names", "labels"),
    [
        ('sum by (job) (rate(a_total{x="b_c", y!~"d"}[5m])) / scalar(max(e))', {"a_total", "e"}, {"job", "x", "y"}),
        ("a unless on () max(b) == 1", {"a", "b"}, set()),
        ("histogram_quantile(0.5, sum by (le) (rate(c_bucket[1m])))", {"c_bucket"}, {"le"}),
        ("time() - d > bool 1e3", {"d"}, set()),
    ],
)
def test_names_are_found_in_a_query(expr: str, names: set[str], labels: set[str]) -> None:
    assert metric_names(expr) == names
    assert label_names(expr) == labels


def test_every_metric_of_ours_is_shown_somewhere() -> None:
    """What nobody looks at should not be exported; the few that are kept for a closer look are named here."""
    asked = {name for path in DASHBOARDS for query in queries(path) for name in metric_names(query.expr)}
    asked |= {name for rule in alerts() for name in metric_names(rule["expr"])}
    families = {name.removesuffix(end) for name in asked for end in ("_bucket", "_sum", "_count", "_total", "")}
    shown = {name.removeprefix("llmos_federation_").removeprefix("llmos_") for name in families}
    kept = {"client_joins", "client_leaves", "updates_rejected"}
    ours = {name for name in exported.families() if name.startswith("llmos_")}
    left = {name.removeprefix("llmos_federation_").removeprefix("llmos_") for name in ours} - shown - kept
    assert left == set()


def _provisioned(kind: str) -> Any:
    (file,) = (DOCKER / "grafana" / "provisioning" / kind).glob("*.yml")
    return yaml.safe_load(file.read_text())


def test_grafana_is_told_of_the_data_source_and_the_dashboards() -> None:
    (source,) = _provisioned("datasources")["datasources"]
    assert (source["type"], source["url"], source["isDefault"]) == ("prometheus", "http://prometheus:9090", True)
    (provider,) = _provisioned("dashboards")["providers"]
    assert provider["options"]["path"].endswith("/dashboards")


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    (source,) = _provisioned("datasources")["datasources"]
    scraped = yaml.safe_load(PROMETHEUS.read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_the_jobs_that_are_asked_for_are_scraped() -> None:
    jobs = {job["job_name"] for job in yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]}
    assert jobs == {"aggregator", "archiver", "client", "evaluator", "inference", "monitor"}

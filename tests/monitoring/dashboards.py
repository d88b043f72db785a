"""The dashboards and alert rules in `docker/`, as the tests read them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
DASHBOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
ALERTS = DOCKER / "prometheus" / "alerts.yml"
ALERTS_TEST = DOCKER / "prometheus" / "alerts_test.yml"
PROMETHEUS = DOCKER / "prometheus" / "prometheus.yml"

_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)")
_MATCHERS = re.compile(r"\{[^}]*\}")
_RANGE = re.compile(r"\[[^\]]*\]")
_NAME = re.compile(r"(?<![\w.])[a-zA-Z_:][a-zA-Z0-9_:]*(?!\w)(?!\s*\()")
_WORDS = frozenset({"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset", "inf", "nan"})


@dataclass(frozen=True)
class Query:
    """One query of a panel, with what Grafana fills in filled in."""

    dashboard: str
    panel: str
    unit: str
    expr: str
    legend: str


@cache
def dashboard(path: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def panels(path: Path) -> list[dict[str, Any]]:
    """Everything but the headings of rows."""
    return [panel for panel in dashboard(path)["panels"] if panel["type"] != "row"]


def fill_in(expr: str, rate_interval: str) -> str:
    """A query as Grafana sends it, for all jobs and instances."""
    return re.sub(r"\$(job|instance)\b", ".*", expr.replace("$__rate_interval", rate_interval))


def queries(path: Path, rate_interval: str = "1m") -> Iterator[Query]:
    """Every query, for all jobs and instances."""
    for panel in panels(path):
        for target in panel["targets"]:
            expr = fill_in(target["expr"], rate_interval)
            unit = panel["fieldConfig"]["defaults"]["unit"]
            yield Query(path.stem, panel["title"], unit, expr, target["legendFormat"])


def alerts() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def metric_names(expr: str) -> set[str]:
    """The metrics that a query reads."""
    bare = _STRING.sub('""', expr)
    for pattern in (_MATCHERS, _RANGE, _GROUPING):
        bare = pattern.sub(" ", bare)
    return {name for name in _NAME.findall(bare) if name.lower() not in _WORDS}


def label_names(expr: str) -> set[str]:
    """The labels that a query selects or groups by."""
    bare = _STRING.sub('""', expr)
    matched = {name for inside in _MATCHERS.findall(bare) for name in re.findall(r"(\w+)\s*(?:=|!)", inside)}
    grouped = {name for inside in _GROUPING.findall(bare) for name in re.findall(r"\w+", inside.partition("(")[2])}
    return matched | grouped

"""The alert rules: each says what to do, and fires when it should and not otherwise."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.monitoring.dashboards import ALERTS, ALERTS_TEST, PROMETHEUS, alerts
from tests.monitoring.tools import promtool


def test_promtool_can_read_the_rules_and_the_configuration() -> None:
    for arguments in (("check", "rules", ALERTS), ("check", "config", PROMETHEUS)):
        done = promtool(*arguments)
        assert done.returncode == 0, done.stderr
        assert "SUCCESS" in done.stdout


@pytest.mark.full
def test_every_alert_fires_when_it_should_and_not_otherwise() -> None:
    done = promtool("test", "rules", ALERTS_TEST)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("expr", ["vector(1) > 2", "vector(1)"], ids=["never", "always"])
def test_an_alert_that_fires_never_or_always_fails_its_tests(expr: str, tmp_path: Path) -> None:
    """There is a case of either kind for each."""
    shutil.copy(ALERTS_TEST, tmp_path)
    changed = yaml.safe_load(ALERTS.read_text())
    for rule in (rule for group in changed["groups"] for rule in group["rules"]):
        rule["expr"] = expr
    (tmp_path / ALERTS.name).write_text(yaml.safe_dump(changed))
    done = promtool("test", "rules", tmp_path / ALERTS_TEST.name)
    said = done.stdout + done.stderr
    assert done.returncode != 0
    assert set(re.findall(r"Llmos\w+", said)) == {rule["alert"] for rule in alerts()}, said


@pytest.mark.parametrize("rule", alerts(), ids=lambda rule: rule["alert"])
def test_an_alert_says_how_bad_it_is_and_what_to_do(rule: dict[str, dict[str, str]]) -> None:
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    said = rule["annotations"]
    assert set(said) == {"summary", "description", "action"}
    assert not said["summary"].endswith(".")
    for text in (said["description"], said["action"]):
        assert re.search(r"\.$", text), text


def test_names_are_there_once() -> None:
    names = [rule["alert"] for rule in alerts()]
    assert len(set(names)) == len(names) == len([name for name in names if name.startswith("Llmos")])

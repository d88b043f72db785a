"""`llmos-stream report` on a real Kafka: a page from the log of a run that is still going."""

from pathlib import Path

import pytest

from tests.cli.aids import Run
from tests.cli.logged import Logged
from tests.conftest import KafkaNode

pytestmark = pytest.mark.kafka


def test_a_report_of_a_run_that_goes_on(
    llmos: Run, logged: Logged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = llmos("report", "--json")
    assert done.status == 0
    summary = done.json()
    assert (summary["version"], summary["updates"], summary["rejected"]) == (1, 2, 2)
    assert summary["finished"] is None
    assert summary["report"] == "report.html"
    page = (tmp_path / "report.html").read_text()
    assert f"Federation {logged.federation}" in page
    assert "when this page was written" in page
    assert "aggregation.buffer_size" in page  # from the newest version's rule, not from settings of this machine
    assert "fedbuff" in page

    done = llmos("report", "--output", tmp_path / "new" / "page.html")
    assert done.status == 0
    assert done.out.endswith(f"wrote {tmp_path / 'new' / 'page.html'}: open it in a browser\n")


def test_what_is_wrong_is_told_in_one_line(
    llmos: Run, kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("LLMOS_BROKER__BOOTSTRAP_SERVERS", kafka.bootstrap_servers)
    done = llmos("report", "--federation.name", federation, "--output", tmp_path / "page.html")
    assert done.status != 0
    assert federation in done.error()
    assert not (tmp_path / "page.html").exists()
    done = llmos("report", "--output", tmp_path)
    assert done.status == 2
    assert done.error() == f"--output: {tmp_path} is a folder"

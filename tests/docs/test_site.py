"""The documentation as a site: it builds without a warning, and has every page."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import DOCS, ROOT


def test_every_page_is_in_the_navigation_once() -> None:
    """`mkdocs build --strict` says so too, where it is installed."""
    named = re.findall(r"^ +- (?:\w+: )?(\w[\w-]*)\.md$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(page.stem for page in DOCS.glob("*.md"))


@pytest.mark.full
def test_it_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=110)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    for page in DOCS.glob("*.md"):
        built = tmp_path / (page.stem if page.stem != "index" else "") / "index.html"
        assert page.read_text().partition("\n")[0].removeprefix("# ") in built.read_text()
    reference = (tmp_path / "api" / "index.html").read_text()
    assert "llmos_stream.federated.FederatedLearning.train" in reference, "the API comes from the code"

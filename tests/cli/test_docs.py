"""The documentation, shown by the command."""

from pathlib import Path

import pytest

from tests.cli.aids import Run
from tests.docs.pages import DOCS


def test_the_pages_are_listed_with_their_titles(llmos: Run) -> None:
    listed = llmos("docs", "--json").json()
    assert Path(listed["folder"]) == DOCS
    assert listed["pages"].keys() == {page.stem for page in DOCS.glob("*.md")}
    assert listed["pages"]["concepts"] == "Concepts"
    shown = llmos("docs").out
    assert str(DOCS) in shown
    assert all(f"\n{name} " in shown for name in listed["pages"])


@pytest.mark.parametrize("name", ["concepts", "concepts.md"])
def test_a_page_is_printed_as_it_is(llmos: Run, name: str) -> None:
    assert llmos("docs", name).out == (DOCS / "concepts.md").read_text()
    assert llmos("docs", name, "--json").json()["text"] == (DOCS / "concepts.md").read_text()


def test_a_terminal_gets_it_formatted(llmos: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = llmos("docs", "concepts").out
    assert "\x1b[" in shown
    assert "**" not in shown


def test_a_page_that_there_is_not(llmos: Run) -> None:
    done = llmos("docs", "concpets")
    assert done.status == 5
    assert done.error() == "there is no page 'concpets'; did you mean concepts?; see llmos-stream docs"

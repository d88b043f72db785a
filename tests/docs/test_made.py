"""The tables that the code gives are those on the pages."""

import re
from pathlib import Path

import pytest

from llmos_stream.types import EventKind
from tests.docs.made import TABLES, pages, parsers, rewritten
from tests.docs.pages import DOCS


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.stem)
def test_a_table_is_the_present_one(page: Path) -> None:
    assert page.read_text() == rewritten(page), "python -m tests.docs writes it anew"


def test_every_table_is_on_a_page() -> None:
    found = [name for page in pages() for name in re.findall(r"<!-- made: (\w+) -->", page.read_text())]
    assert sorted(found) == sorted(TABLES)


def test_each_command_has_a_section() -> None:
    sections = set(re.findall(r"^### (\w+)$", (DOCS / "commands.md").read_text(), re.MULTILINE))
    assert sections == set(parsers())


def test_each_event_is_described() -> None:
    rows = set(re.findall(r"^\| `(\w+)` \| (?:a|the|whoever)", (DOCS / "events.md").read_text(), re.MULTILINE))
    assert rows == {kind.value for kind in EventKind}

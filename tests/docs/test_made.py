"""The tables that the code gives are those on the pages."""

import re
from pathlib import Path

import pytest

from llmos_stream.types import EventKind
from tests.bench.common import show, write_json
from tests.docs.made import TABLES, measured, pages, parsers, rewritten
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


def test_a_benchmarks_tables_become_those_of_a_page(tmp_path: Path) -> None:
    show("What it takes", ["codec", "s"], [["int8", "0.5"]], caption="the less the better")
    write_json(tmp_path, "one", {"results": []})
    show("Another", ["codec"], [["int4"]])
    write_json(tmp_path, "two", {})
    told = measured(tmp_path / "one.json")
    assert (
        "What it takes:\n\n| codec | s |\n| --- | --- |\n| int8 | 0.5 |\n\nThe less the better.\n\nMeasured on" in told
    )
    assert "Another" not in told
    assert "int8" not in measured(tmp_path / "two.json")

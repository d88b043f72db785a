"""Which models work and which are refused, with which line: the table in the documentation, made by `zoo`."""

from pathlib import Path

import pytest

import llmos_stream
from tests.training.zoo import KINDS, outcome, row

_PAGE = Path(llmos_stream.__file__).with_name("docs") / "model.md"


@pytest.mark.parametrize("name", KINDS)
def test_the_page_says_what_becomes_of_each_kind_of_model(name: str) -> None:
    assert row(name, outcome(KINDS[name])) in _PAGE.read_text().splitlines(), "python -m tests.training.zoo prints it"


def test_the_page_names_no_other_kinds() -> None:
    rows = [line for line in _PAGE.read_text().splitlines() if line.startswith("| ")]
    assert len(rows) == len(KINDS) + 2

"""The messages that the documentation explains, and the files that it names, are those of the code."""

import ast
import re
from functools import cache

import pytest

from tests.docs.pages import DOCS, ROOT

pytestmark = pytest.mark.xdist_group("code")

_SAID = [
    message
    for message in re.findall(r"^\| `([^`]+)` \|", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    if message != "message"
]


@cache
def _texts() -> list[str]:
    """Every text in the code; what is filled in is a zero character, as are `%d` and `%s` of logs."""
    found = []
    for path in (ROOT / "llmos_stream").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
                found.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(re.sub(r"%(?:\.\d)?[sdgf]", "\0", node.value))
    return found


@pytest.mark.parametrize("message", _SAID)
def test_a_message_that_is_explained_is_one_of_the_code(message: str) -> None:
    pattern = re.compile(".*?".join(re.escape(part.strip()) for part in message.split("...")), re.DOTALL)
    assert any(pattern.search(text) for text in _texts())


def test_there_are_messages() -> None:
    assert len(_SAID) > 30
    assert not any("no Kafka ever says this" in text for text in _texts())


def test_the_tests_that_the_guarantees_name_are_there() -> None:
    text = (DOCS / "guarantees.md").read_text().partition("## How each is tested")[2]
    named = re.findall(r"`([\w/]+(?:\.py|/))`", text)
    assert len(named) > 10
    for name in named:
        assert (ROOT / "tests" / name).exists(), name
    promised = re.findall(r"^\| ([A-Z][\w ]+) \|", (DOCS / "guarantees.md").read_text(), re.MULTILINE)
    assert sorted(promised[: len(promised) // 2]) == sorted(promised[len(promised) // 2 :]), "each has its tests"

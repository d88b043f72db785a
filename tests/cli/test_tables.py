"""Tables: nothing in them is cut off, and a pipe gets one line a row."""

import re

import pytest

from llmos_stream.cli.common import plain_table, show_table

_SEQUENCES = ["1764301234567", "1764301234568", "1764301239999"]
_NAMES = ["client", "seq", "offset", "n", "stale", "weight", "clip", "share", "payload", "log"]


def _show() -> None:
    table = plain_table(*_NAMES)
    for sequence in _SEQUENCES:
        table.add_row(
            "a client of a long name",
            sequence,
            "0:123456",
            "1500",
            "12",
            "4.572e+04",
            "0.125",
            "12.5%",
            "12345678",
            "present",
        )
    show_table(table)


def test_a_pipe_gets_one_line_a_row(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    _show()
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == _NAMES
    assert [row.split()[6] for row in rows] == _SEQUENCES


@pytest.mark.parametrize("columns", ["40", "80", "200"])
def test_a_terminal_shows_every_digit(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("FORCE_COLOR", "1")
    _show()
    shown = capsys.readouterr().out
    assert [sequence for sequence in _SEQUENCES if sequence not in shown] == []


def test_a_terminal_breaks_long_texts_in_its_own_width(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("FORCE_COLOR", "1")
    table = plain_table()
    table.add_row("client.lr", "word " * 40)
    show_table(table)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 60

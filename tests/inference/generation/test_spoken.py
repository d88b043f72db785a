"""Text comes as soon as it is certain: no half characters, nothing of a stop."""

from collections.abc import Sequence

import pytest

from llmos_stream.inference.generation.spoken import Spoken


def _bytes(tokens: Sequence[int]) -> str:
    return bytes(tokens).decode(errors="replace")


def _pieces(said: str, *stops: str) -> list[str]:
    """What is told with each byte, and in the end."""
    spoken = Spoken(_bytes, stops)
    found = []
    for token in said.encode():
        found.append(spoken.add(token))
        if spoken.has_stopped():
            return found
    return [*found, spoken.end()]


def test_a_character_of_several_tokens_comes_as_a_whole() -> None:
    assert _pieces("aé€z") == ["a", "", "é", "", "", "€", "z", ""]


def test_half_a_character_at_the_end_is_told_as_such() -> None:
    spoken = Spoken(_bytes)
    assert spoken.add("€".encode()[0]) == ""
    assert spoken.end() == "\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("said", "stops", "told"),
    [
        ("one two", ("two",), "one "),
        ("one tw", ("two",), "one tw"),
        ("ababac", ("abac",), "ab"),
        ("xxyz", ("xyz", "z"), "x"),
        ("stop", ("stop",), ""),
        ("a€b", ("€",), "a"),
        ("aaa", ("b",), "aaa"),
    ],
)
def test_an_answer_ends_before_the_first_stop(said: str, stops: tuple[str, ...], told: str) -> None:
    assert "".join(_pieces(said, *stops)) == told


def test_what_may_begin_a_stop_is_kept_back_and_no_more() -> None:
    assert _pieces("a stone", "stop") == ["a", " ", "", "", "", "ston", "e", ""]

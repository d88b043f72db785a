"""What somebody may have meant by a name that there is not."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

_MOST = 3


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`; did you mean X?` with what comes near to `name` among the `known`, or nothing.

    Case, dots, hyphens and underscores do not count, nor does `LLMOS`. The last part of a dotted name stands for it.
    """
    near = _near(_letters(name), list(known))
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _near(wanted: str, known: list[str]) -> list[str]:
    whole = {_letters(name): name for name in known}
    last = [(_letters(re.split(r"\.|__", name)[-1]), name) for name in known]
    if wanted in whole:
        return [whole[wanted]]
    if exact := [name for part, name in last if part == wanted]:
        return exact[:_MOST]
    if near := get_close_matches(wanted, whole, 1, cutoff=0.75):
        return [whole[near[0]]]
    close = get_close_matches(wanted, [part for part, _ in last], 1, cutoff=0.8)
    return [name for part, name in last if part in close][:_MOST]


def _letters(name: str) -> str:
    return re.sub(r"^llmos(stream)?", "", re.sub(r"[\W_]", "", name.lower()))

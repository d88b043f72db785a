"""Numbers and untrusted names, written for people."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

T = TypeVar("T")

BLOCKS = "▁▂▃▄▅▆▇█"
_UNITS = ("B", "kB", "MB", "GB", "TB", "PB", "EB")


def plain(text: str, width: int | None = None) -> str:
    """Return `text` on one line without control or direction characters, cut to `width` characters.

    A client's name must neither drive a terminal nor rearrange a page.
    """
    shown = "".join(c if c.isprintable() else " " if c.isspace() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return shown if width is None or len(shown) <= width else f"{shown[: width - 1]}…"


def size(count: int) -> str:
    """Bytes in decimal units, three digits: `12.3 MB`."""
    value, unit = float(count), 0
    while value >= 999.5 and unit < len(_UNITS) - 1:
        value, unit = value / 1000, unit + 1
    if unit == 0:
        return f"{count} B"
    return f"{value:.{0 if value >= 99.95 else 1 if value >= 9.995 else 2}f} {_UNITS[unit]}"


def duration(seconds: float) -> str:
    """`0.4 s`, `34 s`, `2 min 5 s`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for unit, name, smaller, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= unit:
            rest = whole % unit // smaller
            return f"{whole // unit} {name}" + (f" {rest} {small}" if rest else "")
    return f"{whole} s"


def short_duration(seconds: float) -> str:
    """At most four or five characters for a narrow column: `0.4s`, `34s`, `12m`, `3h`, `20d`."""
    if seconds < 9.95:
        return f"{seconds:.1f}s"
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f}{name}"
    return f"{seconds:.0f}s"


def number(value: float) -> str:
    """Three significant digits, thousands apart: `0.0123`, `5.2`, `1 234`."""
    if value == 0 or 0.001 <= abs(value) < 999.5:
        return f"{value:.3g}"
    return f"{value:,.0f}".replace(",", " ") if 999.5 <= abs(value) < 1e9 else f"{value:.2e}"


def count(value: int) -> str:
    """A whole number with thousands apart."""
    return f"{value:,}".replace(",", " ")


def plural(value: int, one: str) -> str:
    """`1 client`, `8 clients`."""
    return f"{count(value)} {one if value == 1 else one + 's'}"


def or_dash(value: T | None, written: Callable[[T], str] = str) -> str:
    """Return the value as `written`, or a dash for None."""
    return "-" if value is None else written(value)


def natural(name: str) -> list[tuple[bool, int, str]]:
    """Return a sort key that puts `client-2` before `client-10`."""
    return [
        (False, int(part), "") if part.isascii() and part.isdigit() else (True, 0, part)
        for part in re.split(r"([0-9]+)", name)
    ]


def sparkline(values: Sequence[float], width: int) -> str:
    """Draw the values as blocks between their least and greatest, at most `width` characters."""
    if len(values) > width:
        values = [values[index * (len(values) - 1) // (width - 1)] for index in range(width)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in values)


def listed(names: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *head, last = [*names] or [""]
    return f"{', '.join(head)} and {last}" if head else last


def as_text(value: object) -> str:
    """Write a value on one line, and a section of settings as `name=value` pairs."""
    if not isinstance(value, Mapping):
        return plain(str(value))
    return ", ".join(
        f"{name} ({as_text(inner)})" if isinstance(inner, Mapping) else f"{name}={as_text(inner)}"
        for name, inner in value.items()
    )

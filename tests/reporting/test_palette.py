"""The colours hold for eyes of every kind: contrast by WCAG 2.2, colour-blind sight by Machado et al. 2009,
differences in OKLab (Ottosson 2020), where the whole range from black to white is 1."""

import itertools
import re

import pytest

from llmos_stream.reporting.template import STYLE

Vector = tuple[float, float, float]
LIGHT, DARK = (dict(re.findall(r"--(\w+): (#[0-9a-f]{6});", block)) for block in STYLE.split(":root")[1:])
THEMES = pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
SIGHTS: dict[str, tuple[Vector, Vector, Vector]] = {
    "usual": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "protan": ((0.152286, 1.052583, -0.204868), (0.114503, 0.786281, 0.099216), (-0.003882, -0.048116, 1.051998)),
    "deutan": ((0.367322, 0.860646, -0.227968), (0.280085, 0.672501, 0.047413), (-0.011820, 0.042940, 0.968881)),
    "tritan": ((1.255528, -0.076749, -0.178779), (-0.078411, 0.930809, 0.147602), (0.004733, 0.691367, 0.303900)),
}
LMS = ((0.41222147, 0.53633254, 0.05144599), (0.2119035, 0.6806995, 0.1073970), (0.08830246, 0.28171884, 0.6299787))
LAB = (
    (0.21045426, 0.79361778, -0.00407205),
    (1.9779985, -2.42859221, 0.45059371),
    (0.02590404, 0.78277177, -0.80867577),
)


def linear(colour: str) -> Vector:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return r, g, b


def times(matrix: tuple[Vector, ...], vector: Vector) -> Vector:
    r, g, b = (sum(a * v for a, v in zip(row, vector, strict=True)) for row in matrix)
    return r, g, b


def contrast(one: str, other: str) -> float:
    dark, light = sorted(times(((0.2126, 0.7152, 0.0722),) * 3, linear(colour))[0] for colour in (one, other))
    return (light + 0.05) / (dark + 0.05)


def oklab(colour: str, sight: str) -> Vector:
    seen = times(SIGHTS[sight], linear(colour))
    a, b, c = (
        max(0.0, x) ** (1 / 3)
        for x in times(LMS, (min(1, max(0, seen[0])), min(1, max(0, seen[1])), min(1, max(0, seen[2]))))
    )
    return times(LAB, (a, b, c))


@THEMES
def test_text_and_marks_stand_out(theme: dict[str, str]) -> None:
    for ground in ("card", "page"):
        assert all(contrast(theme[name], theme[ground]) >= 4.5 for name in ("text", "muted", "link", "bad"))
    marks = ["rest", *(f"c{index}" for index in range(8))]
    assert all(contrast(theme[name], theme["card"]) >= 3 for name in marks)


@THEMES
@pytest.mark.parametrize("sight", SIGHTS)
def test_clients_stay_apart(theme: dict[str, str], sight: str) -> None:
    for one, other in itertools.combinations(range(8), 2):
        pair = oklab(theme[f"c{one}"], sight), oklab(theme[f"c{other}"], sight)
        assert sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) ** 0.5 > 0.085, (one, other)


def test_both_themes_name_the_same_colours() -> None:
    assert LIGHT.keys() == DARK.keys()

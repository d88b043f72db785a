"""How fast the fastest client is, whatever one of them says."""

import math

import pytest

from llmos_stream.core.speeds import Speeds


def test_the_fastest_of_those_that_take_part() -> None:
    speeds = Speeds()
    assert speeds.fastest(3) == 0.0
    for name, speed in (("gone", 9.0), ("a", 2.0), ("b", 4.0)):
        speeds.note(name, speed)
    assert speeds.fastest(3) == 9.0
    assert speeds.fastest(2) == 4.0
    speeds.note("b", 1.0)
    assert speeds.fastest(2) == 2.0
    speeds.note("a", None)  # it does not adapt its steps any more
    assert speeds.fastest(1) == 1.0


def test_one_that_boasts_is_held_to_the_others() -> None:
    speeds = Speeds()
    for name, speed in (("a", 1.0), ("b", 2.0), ("c", 3.0), ("liar", 1e9)):
        speeds.note(name, speed)
    assert speeds.fastest(4) == 25.0  # ten times the median


@pytest.mark.parametrize("speed", [math.nan, math.inf, -1.0, 0.0])
def test_what_is_no_speed_is_none(speed: float) -> None:
    speeds = Speeds()
    speeds.note("a", speed)
    assert speeds.fastest(1) == 0.0


def test_what_is_remembered_is_bounded() -> None:
    speeds = Speeds()
    for number in range(5000):
        speeds.note(str(number), 1.0)
    assert len(speeds._known) == 4096

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.config import StalenessSettings
from llmos_stream.core.staleness import staleness_of
from llmos_stream.errors import Reason, Rejected
from tests.core import oracles
from tests.core.builders import discount

settings = st.builds(
    StalenessSettings,
    kind=st.sampled_from(["constant", "polynomial", "hinge"]),
    a=st.floats(0.01, 20),
    b=st.floats(0, 50),
)


@given(settings, st.integers(0, 10_000))
def test_agrees_with_the_formula_and_lies_between_0_and_1(rule: StalenessSettings, tau: int) -> None:
    value = discount(tau, rule)
    assert math.isclose(value, oracles.s(rule.kind, tau, rule.a, rule.b), rel_tol=1e-12)
    assert 0 <= value <= 1


@given(settings)
def test_a_fresh_update_counts_in_full(rule: StalenessSettings) -> None:
    assert discount(0, rule) == 1.0


@given(settings, st.integers(0, 1000))
def test_never_rises_with_staleness(rule: StalenessSettings, tau: int) -> None:
    assert discount(tau + 1, rule) <= discount(tau, rule)


@pytest.mark.parametrize(
    ("kind", "a", "b", "tau", "value"),
    [
        ("constant", 0.5, 4, 1000, 1.0),
        ("polynomial", 0.5, 4, 3, 0.5),
        ("polynomial", 1.0, 4, 4, 0.2),
        ("polynomial", 1000.0, 4, 20, 0.0),
        ("hinge", 10.0, 4, 4, 1.0),
        ("hinge", 10.0, 4, 5, 1 / 11),
        ("hinge", 0.5, 0, 2, 0.5),
    ],
)
def test_known_values(kind: str, a: float, b: float, tau: int, value: float) -> None:
    assert discount(tau, StalenessSettings(kind=kind, a=a, b=b)) == pytest.approx(value)


def test_the_default_is_one_over_the_root_of_one_plus_tau() -> None:
    assert discount(8, StalenessSettings()) == pytest.approx(1 / 3)


def test_a_negative_staleness_is_a_programming_error() -> None:
    with pytest.raises(ValueError, match="negative"):
        discount(-1, StalenessSettings())


@given(st.integers(-5, 100), st.integers(0, 60), st.integers(0, 30))
def test_staleness_counts_versions_from_the_base_that_is_named(base: int, version: int, maximum: int) -> None:
    rule = StalenessSettings(maximum=maximum)
    if base < 0 or base > version:
        with pytest.raises(Rejected) as caught:
            staleness_of(base, version, rule)
        assert caught.value.reason is Reason.UNKNOWN_BASE_VERSION
    elif version - base > maximum:
        with pytest.raises(Rejected) as caught:
            staleness_of(base, version, rule)
        assert caught.value.reason is Reason.TOO_STALE
    else:
        assert staleness_of(base, version, rule) + base == version

"""The pace that clients are told: as many updates as can be folded, no more."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.core import Pace

seconds = st.floats(1e-4, 100.0)


def test_nothing_is_asked_for_before_anything_is_known() -> None:
    pace = Pace(0.9)
    pace.observe(0, 5.0)
    assert pace.interval(10) == 0.0


@given(seconds, st.integers(1, 64), st.integers(1, 500), st.floats(0.1, 1.0))
def test_clients_that_keep_to_it_leave_the_aggregator_its_share(
    service: float, buffer: int, clients: int, utilisation: float
) -> None:
    pace = Pace(utilisation)
    for _ in range(3):
        pace.observe(buffer, buffer * service)
    arriving_per_second = clients / pace.interval(clients)
    assert arriving_per_second * service == pytest.approx(utilisation)


def test_it_follows_what_an_update_costs_now() -> None:
    pace = Pace(1.0)
    pace.observe(4, 4.0)
    slower = [pace.interval(2)]
    for _ in range(20):
        pace.observe(4, 12.0)
        slower.append(pace.interval(2))
    assert slower == sorted(slower)
    assert slower[0] == pytest.approx(2.0)
    assert slower[-1] == pytest.approx(6.0, rel=0.01)

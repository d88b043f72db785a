"""What pages are sent makes the new state of the old one, and is small where little changed."""

from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.dashboard.changes import difference
from tests.dashboard.patch import apply

# No field is a number now and a truth value then, so that 1 and True need not be told apart.
_SCALARS = st.none() | st.booleans() | st.integers(2, 5) | st.text("ab", max_size=2)
_JSON: st.SearchStrategy[Any] = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.sampled_from("xyz"), inner, max_size=3),
    max_leaves=20,
)


@given(_JSON, _JSON)
def test_the_difference_leads_from_the_old_to_the_new(old: Any, new: Any) -> None:
    change = difference(old, new)
    if change is None:
        assert old == new
    else:
        assert apply(old, orjson.loads(orjson.dumps(change))) == new


@given(_JSON)
def test_what_is_equal_has_no_difference(value: Any) -> None:
    assert difference(value, orjson.loads(orjson.dumps(value))) is None


def test_a_series_that_grows_costs_its_new_points() -> None:
    old, new = list(range(1000)), [*range(1000), 7]
    assert difference({"x": old, "y": 1}, {"x": new, "y": 1}) == ["d", [["x", ["s", 1000, [7]]]]]


def test_rows_that_move_up_cost_the_new_row() -> None:
    old = [{"number": number, "bytes": 5} for number in range(200)]
    new = [*old[1:], {"number": 200, "bytes": 5}]
    assert difference(old, new) == ["l", 1, [], [{"number": 200, "bytes": 5}]]


def test_a_row_that_changes_costs_its_field() -> None:
    old = [{"id": f"client-{index}", "seen": 1} for index in range(100)]
    new = [{**row, "seen": 2} if row["id"] == "client-40" else row for row in old]
    assert difference(old, new) == ["l", 0, [[40, ["d", [["seen", ["v", 2]]]]]], []]

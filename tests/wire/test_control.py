"""What `run` and `finish` say in `<f>.control`, to this release and to the one before."""

import orjson
import pytest

from llmos_stream.errors import Rejected
from llmos_stream.wire.control import RunEnd, dump_finish, dump_run_end, dump_running, load_run

_END = RunEnd("max_versions", "version 20 reached the limit of 20", 20, {"max_versions": 20, "target": None})


def test_an_end_comes_back_as_it_was() -> None:
    found = load_run(orjson.loads(dump_run_end(_END)))
    assert found == _END
    assert found.stop == _END.stop


def test_an_end_of_the_release_before_does_not_say_under_which_settings() -> None:
    old = {"state": "finished", "reason": "target", "detail": "reached", "version": 3}
    assert orjson.loads(dump_run_end(RunEnd("target", "reached", 3))) == old
    found = load_run(old)
    assert found == RunEnd("target", "reached", 3)
    assert found.stop is None


def test_a_run_that_goes_on_has_no_end() -> None:
    assert load_run(orjson.loads(dump_running(20))) is None
    assert orjson.loads(dump_running(20))["state"] != "finished"  # what the release before looks for


@pytest.mark.parametrize(
    "value",
    [
        {},
        {"state": "later"},
        {"state": "running"},
        {"state": "running", "version": -1},
        {"state": "finished", "reason": "target", "detail": "x", "version": 2**63},
        {"state": "finished", "reason": "target", "detail": "x", "version": 3, "stop": 5},
    ],
)
def test_what_no_aggregator_writes_is_refused(value: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError, Rejected)):
        load_run(value)


def test_a_wish_says_when() -> None:
    assert orjson.loads(dump_finish(5)) == {"time_ms": 5}

"""What an operator is told first: clients that are shut out, names that two have, records that nobody wrote."""

from llmos_stream.reporting import History
from llmos_stream.reporting.notices import notices
from llmos_stream.types import Event, EventKind


def _history(*kinds: str, clients: int = 1) -> History:
    """Each client joins, and then has updates refused (`r`), repeated (`d`) and folded (`f`)."""
    history = History()
    for number in range(clients):
        name = {"client_id": f"site-{number}"}
        history.add(Event(EventKind.CLIENT_JOINED, "client", 1, name))
        for sequence, kind in enumerate(kinds):
            place = {"partition": 0, "offset": 1000 * number + sequence}
            data = {**name, **place, "sequence": sequence}
            match kind:
                case "r":
                    history.add(Event(EventKind.UPDATE_REJECTED, "aggregator", 2, {**data, "reason": "too_stale"}))
                case "d":
                    history.add(Event(EventKind.UPDATE_DUPLICATE, "aggregator", 2, data))
                case _:
                    history.add(Event(EventKind.UPDATE_FOLDED, "aggregator", 2, data))
    return history


def test_a_client_whose_updates_never_count_is_named_with_the_reason() -> None:
    (said,) = notices(_history("f", "r", "r", "r"), {})
    assert "site-0" in said
    assert "too_stale" in said
    assert "staleness.maximum" in said
    assert notices(_history("r", "r", "r", "f"), {}) == []
    assert notices(_history("r", "r"), {}) == []


def test_a_client_that_sends_seldom_is_named_within_a_minute() -> None:
    history = _history("r")
    assert notices(history, {}) == []
    history.add(Event(EventKind.VERSION_PUBLISHED, "aggregator", 31_000, {"version": 1}))
    (said,) = notices(history, {})
    assert "site-0" in said


def test_a_name_that_two_have_shows_as_repeats() -> None:
    (said,) = notices(_history("f", "d", "d", "d"), {})
    assert "site-0" in said
    assert "client.id" in said
    assert notices(_history("d", "d", "d", "f"), {}) == []


def test_many_are_named_by_their_number() -> None:
    (said,) = notices(_history("r", "r", "r", clients=40), {})
    assert "site-0, site-1, site-2, site-3, site-4 and 35 more" in said


def test_records_that_nobody_wrote_are_counted() -> None:
    (said,) = notices(History(), {"models": 1, "events": 1200, "control": 0})
    assert said.startswith("Passed over 1 201 records")
    assert "1 in models and 1200 in events" in said


def _collapsed(action: str, **fields: object) -> History:
    history = History()
    data = {"version": 4, "loss": None, "limit": 3.0, "best_version": 2, "best_loss": 1.0, "action": action, **fields}
    history.add(Event(EventKind.MODEL_COLLAPSED, "aggregator", 1, data))
    return history


def _evaluated(history: History, version: int, loss: float | None) -> list[str]:
    history.add(Event(EventKind.EVALUATION, "evaluator", 2, {"version": version, "metrics": {"loss": loss}}))
    return notices(history, {})


def test_a_collapse_stands_there_until_a_newer_version_is_good() -> None:
    history = _collapsed("none")
    (said,) = notices(history, {})
    assert "the loss of version 4 is not a finite number, where version 2 has 1." in said
    assert "Nothing was done" in said
    assert _evaluated(history, 3, 1.0) == [said]
    assert _evaluated(history, 5, None) == [said]
    assert _evaluated(history, 6, 3.5) == [said]
    assert _evaluated(history, 7, 2.5) == []


def test_what_was_done_about_it_is_said() -> None:
    assert "llmos-stream resume" in notices(_collapsed("pause", loss=9.5), {})[0]
    history = _collapsed("rollback", loss=9.5)
    assert "the loss of version 4 is 9.5" in notices(history, {})[0]
    assert "is to come" in notices(history, {})[0]
    back = {"version": 6, "parent": 5, "contributions": 0, "rolled_back_to": 2}
    history.add(Event(EventKind.VERSION_PUBLISHED, "aggregator", 3, back))
    assert "Version 6 goes back to version 2." in notices(history, {})[0]


def test_without_another_version_to_compare_with() -> None:
    (said,) = notices(_collapsed("none", best_version=None, best_loss=None, limit=None), {})
    assert "is not a finite number. Nothing" in said

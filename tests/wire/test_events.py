import json
from collections.abc import Mapping
from types import MappingProxyType

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_stream.errors import Reason, Rejected
from llmos_stream.reporting import History
from llmos_stream.types import Event, EventKind
from llmos_stream.wire import dump_event, load_event
from llmos_stream.wire.events import FIELDS, MAX_BYTES, fault_of
from llmos_stream.wire.fields import MAX_TIME_MS
from tests.reporting.fake import Federation

MINIMAL: dict[EventKind, dict[str, object]] = {
    EventKind.CLIENT_JOINED: {"client_id": "a"},
    EventKind.CLIENT_LEFT: {"client_id": "a"},
    EventKind.UPDATE_SENT: {"client_id": "a", "sequence": 1},
    EventKind.UPDATE_FOLDED: {"client_id": "a", "sequence": 1},
    EventKind.UPDATE_DUPLICATE: {"client_id": "a", "sequence": 1},
    EventKind.UPDATE_REJECTED: {"reason": "truncated"},
    EventKind.VERSION_PUBLISHED: {"version": 0},
    EventKind.EVALUATION: {"version": 0, "metrics": {}},
    EventKind.MODEL_COLLAPSED: {"version": 0},
    EventKind.RUN_FINISHED: {},
    EventKind.RUN_RESUMED: {},
}


def malformed(data: bytes) -> str:
    with pytest.raises(Rejected) as caught:
        load_event(data)
    assert caught.value.reason is Reason.MALFORMED
    return caught.value.detail


def loaded(data: bytes) -> Event | None:
    """The event, or None where it is refused as malformed; no other error passes."""
    try:
        return load_event(data)
    except Rejected as error:
        if error.reason is not Reason.MALFORMED:
            raise
        return None


def record(kind: str, data: object, role: object = "r", time_ms: object = 5) -> bytes:
    return orjson.dumps({"kind": kind, "role": role, "time_ms": time_ms, "data": data})


def test_every_event_of_a_run_comes_back_equal() -> None:
    events = Federation().events
    assert {event.kind for event in events} == set(EventKind) - {EventKind.RUN_RESUMED}  # it ends once
    assert [load_event(dump_event(event)) for event in events] == events


def test_the_table_names_every_kind() -> None:
    assert set(FIELDS) == set(EventKind) == set(MINIMAL)


@pytest.mark.parametrize("kind", EventKind)
def test_only_required_fields_are_required(kind: EventKind) -> None:
    event = Event(kind, "r", 5, MINIMAL[kind])
    assert load_event(dump_event(event)) == event
    History().add(event)
    for name, field in FIELDS[kind].items():
        assert field.required == (name in MINIMAL[kind])
        without = {key: value for key, value in MINIMAL[kind].items() if key != name}
        if field.required:
            assert malformed(record(kind, without)) == malformed(record(kind, without | {name: None}))
        else:
            load_event(record(kind, without | {name: None}))


@pytest.mark.parametrize("kind", EventKind)
def test_a_field_of_another_type_is_refused(kind: EventKind) -> None:
    for name in FIELDS[kind]:
        wrongs: tuple[object, ...] = (True, [], {"x": "y"}, -1)
        for wrong in wrongs:
            assert name in malformed(record(kind, MINIMAL[kind] | {name: wrong}))


def test_whole_numbers_are_whole_and_bounded() -> None:
    for wrong in (b"1.5", b"9223372036854775808", b"1" * 30, b'"1"'):
        malformed(record("version_published", {"version": 77}).replace(b"77", wrong))
    assert load_event(record("version_published", {"version": 2**63 - 1})).data["version"] == 2**63 - 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        b'{"kind": "evaluation"',
        b"[" * 5000,
        record("no_such_kind", {}),
        orjson.dumps({"kind": [], "role": "r", "time_ms": 5, "data": {}}),
        orjson.dumps({"kind": "run_finished", "role": "r", "time_ms": 5}),
        record("run_finished", {}, role=None),
        record("run_finished", {}, role=3),
        record("run_finished", {}, time_ms="5"),
        record("run_finished", {}, time_ms=5.0),
        record("run_finished", {}, time_ms=-1),
        record("run_finished", {}, time_ms=True),
        record("run_finished", {}, time_ms=MAX_TIME_MS + 1),
        record("run_finished", []),
        record("run_finished", None),
        b'{"kind":"evaluation","role":"r","time_ms":5,"data":{"version":1,"metrics":{"loss":1e999}}}',
        b'{"kind":"evaluation","role":"r","time_ms":5,"data":{"version":1,"metrics":{"loss":NaN}}}',
    ],
)
def test_what_is_not_an_event_is_refused(data: bytes) -> None:
    malformed(data)


def test_an_event_longer_than_a_record_is_refused_both_ways() -> None:
    long = Event(EventKind.RUN_FINISHED, "r", 5, {"detail": "x" * MAX_BYTES})
    with pytest.raises(ValueError, match="1048576"):
        dump_event(long)
    assert "1048576" in malformed(b" " * (MAX_BYTES + 1))


def test_the_reason_never_quotes_the_message() -> None:
    assert "hostile" not in malformed(record("update_sent", {"client_id": ["hostile"], "sequence": 1}))
    assert "hostile" not in malformed(record("hostile", {}))


def test_unknown_keys_are_left_out_and_not_looked_at() -> None:
    event = Event(EventKind.CLIENT_JOINED, "r", 5, {"client_id": "a", "added_later": {"deep": [1]}})
    assert load_event(dump_event(event)) == Event(EventKind.CLIENT_JOINED, "r", 5, {"client_id": "a"})


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("client_joined", {"client_id": "x" * 129}),
        ("client_joined", {"client_id": "<img src=x onerror=alert(1)>"}),
        ("client_left", {"client_id": ""}),
        ("client_left", {"client_id": "a", "reason": "x" * 5000}),
        ("update_sent", {"client_id": "\x1b[31mred", "sequence": 1}),
        ("update_folded", {"client_id": "a\n", "sequence": 1}),
        ("update_rejected", {"client_id": "x" * 200_000, "reason": "malformed"}),
        ("update_rejected", {"reason": "malformed", "detail": "x" * 200_000}),
        ("evaluation", {"version": 1, "metrics": {f"m{number}": 1.0 for number in range(2000)}}),
        ("evaluation", {"version": 2**64, "metrics": {}}),
        ("version_published", {"version": 1, "lag": -1}),
    ],
)
def test_what_no_writer_says_is_refused(kind: str, data: dict[str, object]) -> None:
    try:
        raw = record(kind, data)
    except TypeError:  # orjson writes 64 bits
        raw = json.dumps({"kind": kind, "role": "r", "time_ms": 5, "data": data}).encode()
    malformed(raw)


@pytest.mark.parametrize("constant", [b"NaN", b"Infinity", b"-Infinity"])
def test_json_has_no_nan(constant: bytes) -> None:
    malformed(record("evaluation", {"version": 1, "metrics": {"loss": 77}}).replace(b"77", constant))


def test_numbers_that_are_not_finite_become_null() -> None:
    data = {"version": 3, "metrics": {"loss": float("nan"), "accuracy": 0.5}, "seconds": float("inf")}
    assert load_event(dump_event(Event(EventKind.EVALUATION, "e", 5, data))).data == {
        "version": 3,
        "metrics": {"loss": None, "accuracy": 0.5},
        "seconds": None,
    }


def test_any_mapping_and_any_float_can_be_written() -> None:
    class Float(float):
        pass

    data: Mapping[str, object] = MappingProxyType(
        {"version": 1, "metrics": MappingProxyType({"accuracy": Float(0.5)}), "seconds": Float(2)}
    )
    assert load_event(dump_event(Event(EventKind.EVALUATION, "e", 5, data))).data == {
        "version": 1,
        "metrics": {"accuracy": 0.5},
        "seconds": 2.0,
    }


@pytest.mark.parametrize("data", [{}, {"client_id": 3}, {"client_id": b"a"}])
def test_writing_what_no_reader_takes_is_an_error_of_the_program(data: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="client_id"):
        dump_event(Event(EventKind.CLIENT_JOINED, "r", 5, data))


def test_a_value_that_json_cannot_hold_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="bytes"):
        dump_event(Event(EventKind.CLIENT_JOINED, "r", 5, {"client_id": "a", "extra": b"x"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
NAMES = sorted({name for fields in FIELDS.values() for name in fields})


@settings(deadline=None, max_examples=300)
@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_refused_or_an_event(data: bytes) -> None:
    event = loaded(data)
    assert event is None or fault_of(event) is None


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(EventKind), st.dictionaries(st.sampled_from(NAMES), JSON, max_size=6), JSON, JSON)
def test_whatever_load_takes_a_history_takes(
    kind: EventKind, changes: dict[str, object], role: object, time_ms: object
) -> None:
    history = History()
    data = MINIMAL[kind] | changes
    for encoded in (record(kind, data, role, time_ms), record(kind, data)):
        event = loaded(encoded)
        if event is not None:
            assert load_event(dump_event(event)) == event
            history.add(event)
    orjson.dumps(history.summary())

"""Events as JSON: what each kind carries, and how one is written and read.

`FIELDS` is the closed table. A field marked required is what gives the event its identity or its
meaning; any other may be missing or null. A number that is not finite counts as null, which is what
JSON makes of it. Keys that the table does not name are left out by a reader, so an older one takes a
newer writer's events.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import orjson

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.fields import MAX_TIME_MS, is_client_id

MAX_BYTES = 1 << 20
"""Kafka's default limit on a message: no event can honestly be longer."""
_MAX_AMOUNT = 2**63
_MAX_TEXT = 4096
MOST_NAME = 128
"""Characters that the name of a metric may have."""
_MAX_METRICS = 1024


def text(value: object) -> str | None:
    """`value` where it is a string."""
    return value if isinstance(value, str) else None


def whole(value: object) -> int | None:
    """`value` where it is an integer from 0 up to 2^63 (bool is not one)."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _MAX_AMOUNT else None


def amount(value: object) -> float | None:
    """`value` as a float where it is a number from 0 up to 2^63."""
    number = _number(value)
    return number if number is not None and 0 <= number < _MAX_AMOUNT else None


def metrics(value: object) -> Mapping[str, float] | None:
    """The named numbers of `value`, without those that are null or not finite."""
    if not isinstance(value, Mapping):
        return None
    found: dict[str, float] = {}
    for name, item in value.items():
        if _absent(item):
            continue
        number = _number(item)
        if number is None or not isinstance(name, str):
            return None
        found[name] = number
    return found


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def _absent(value: object) -> bool:
    return value is None or (isinstance(value, float) and not math.isfinite(value))


class Field(NamedTuple):
    """How a field of `Event.data` is read (None: not of its type), and whether it must be there."""

    read: Callable[[object], object]
    required: bool = False


_CLIENT = {"client_id": Field(text, True)}
_IDENTITY = {**_CLIENT, "sequence": Field(whole, True)}
_PLACE = {"partition": Field(whole), "offset": Field(whole)}

FIELDS: Mapping[EventKind, Mapping[str, Field]] = MappingProxyType(
    {
        EventKind.CLIENT_JOINED: {**_CLIENT, "num_examples": Field(whole)},
        EventKind.CLIENT_LEFT: {**_CLIENT, "reason": Field(text), "updates": Field(whole)},
        EventKind.UPDATE_SENT: {
            **_IDENTITY,
            "base_version": Field(whole),
            "num_examples": Field(whole),
            "raw_bytes": Field(whole),
            "sent_bytes": Field(whole),
            "train_seconds": Field(amount),
            "encode_seconds": Field(amount),
            "metrics": Field(metrics),
        },
        EventKind.UPDATE_FOLDED: {
            **_IDENTITY,
            **_PLACE,
            "staleness": Field(whole),
            "weight": Field(amount),
            "clip": Field(amount),
            "steps": Field(amount),
            "num_examples": Field(whole),
            "version": Field(whole),
            "payload_bytes": Field(whole),
            "raw_bytes": Field(whole),
        },
        EventKind.UPDATE_DUPLICATE: {**_IDENTITY, **_PLACE},
        EventKind.UPDATE_REJECTED: {
            **_PLACE,
            "client_id": Field(text),
            "sequence": Field(whole),
            "reason": Field(text, True),
            "detail": Field(text),
        },
        EventKind.VERSION_PUBLISHED: {
            "version": Field(whole, True),
            "parent": Field(whole),
            "contributions": Field(whole),
            "payload_bytes": Field(whole),
            "raw_bytes": Field(whole),
            "fold_seconds": Field(amount),
            "lag": Field(whole),
            "pace_seconds": Field(amount),
            "mean_staleness": Field(amount),
            "weights_digest": Field(text),
            "rolled_back_to": Field(whole),
        },
        EventKind.MODEL_COLLAPSED: {
            "version": Field(whole, True),
            "loss": Field(amount),
            "limit": Field(amount),
            "best_version": Field(whole),
            "best_loss": Field(amount),
            "action": Field(text),
        },
        EventKind.EVALUATION: {
            "client_id": Field(text),
            "version": Field(whole, True),
            "trained_by": Field(text),
            "since": Field(whole),
            "metrics": Field(metrics, True),
            "num_examples": Field(whole),
            "seconds": Field(amount),
        },
        EventKind.RUN_FINISHED: {"reason": Field(text), "detail": Field(text), "version": Field(whole)},
        EventKind.RUN_RESUMED: {"version": Field(whole)},
    }
)


def dump_event(event: Event) -> bytes:
    """The event as one JSON object.

    Raises:
        ValueError: The event is not of the closed table, or exceeds `MAX_BYTES`.
        TypeError: A value is one that JSON cannot hold, such as a tensor.
    """
    if fault := fault_of(event):
        raise ValueError(f"event is not one that a reader takes: {fault}")
    record = {"kind": event.kind, "role": event.role, "time_ms": event.time_ms, "data": event.data}
    encoded = orjson.dumps(record, default=_plain)
    if len(encoded) > MAX_BYTES:
        raise ValueError(f"event {event.kind} takes {len(encoded)} bytes, more than the {MAX_BYTES} of a record")
    return encoded


def load_event(data: bytes) -> Event:
    """The event in `data`; what `dump_event` wrote comes back equal.

    Raises:
        Rejected: MALFORMED for anything that is not one event of the closed table.
    """
    if len(data) > MAX_BYTES:
        raise Rejected(Reason.MALFORMED, f"an event of {len(data)} bytes, more than {MAX_BYTES}")
    try:
        record = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise Rejected(Reason.MALFORMED, f"an event that is not JSON: {error}") from None
    if not isinstance(record, dict) or not {"kind", "role", "time_ms", "data"} <= record.keys():
        raise Rejected(Reason.MALFORMED, "an event must be a JSON object with kind, role, time_ms and data")
    try:
        kind = EventKind(record["kind"])
    except ValueError:
        raise Rejected(Reason.MALFORMED, "an event of an unknown kind") from None
    event = Event(kind, record["role"], record["time_ms"], record["data"])
    if fault := fault_of(event) or _out_of_range(event):
        raise Rejected(Reason.MALFORMED, fault)
    fields = FIELDS[kind]
    return Event(kind, event.role, event.time_ms, {name: event.data[name] for name in event.data if name in fields})


def fault_of(event: Event) -> str | None:
    """What about `event` is not of the closed table, in one line, or None. Never quotes a value."""
    data: object = event.data
    if text(event.role) is None:
        return "role must be text"
    if whole(event.time_ms) is None or event.time_ms > MAX_TIME_MS:
        return "time_ms must be milliseconds since 1970, up to the year 9999"
    if not isinstance(data, Mapping):
        return "data must be an object"
    for name, field in FIELDS[event.kind].items():
        value = data.get(name)
        if _absent(value):
            if field.required:
                return f"{event.kind} lacks {name}"
        elif field.read(value) is None:
            return f"{event.kind}.{name} must be {_MEANING[field.read]}"
    return None


def _out_of_range(event: Event) -> str | None:
    """What about `event` no writer of a federation says, or takes more room than any needs."""
    fields = FIELDS[event.kind]
    if "client_id" in fields and fields["client_id"].required and not is_client_id(event.data["client_id"]):
        return f"{event.kind}.client_id is none"
    texts = {"role": event.role} | {name: value for name, value in event.data.items() if name in fields}
    for name, value in texts.items():
        limit = _MAX_TEXT if name in ("reason", "detail") else MOST_NAME
        if isinstance(value, str) and len(value) > limit:
            return f"{event.kind}.{name} has more than {limit} characters"
        if isinstance(value, Mapping) and (len(value) > _MAX_METRICS or any(len(key) > MOST_NAME for key in value)):
            return f"{event.kind}.{name} has more than {_MAX_METRICS} names, or longer ones than {MOST_NAME} characters"
    return None


_MEANING: Mapping[Callable[[object], object], str] = {
    text: "text",
    whole: "an integer from 0 up",
    amount: "a finite number from 0 up",
    metrics: "an object of numbers",
}


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, float):  # a subclass, such as numpy's
        return float(value)
    raise TypeError(f"an event cannot hold a {type(value).__name__}")

"""The head maps of all kinds of messages, to and from bytes (fields: see `wire.frame`)."""

from collections.abc import Callable, Mapping
from functools import partial
from operator import attrgetter
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import (
    CodecSpec,
    Contribution,
    Head,
    LocalModelHead,
    SnapshotHead,
    TensorKind,
    TensorSpec,
    UpdateHead,
    VersionHead,
    VersionKind,
)
from llmos_stream.wire import fields as f

MAX_CODEC_PARAMS = 16
MAX_METRICS = 64

_TENSOR = ("name", "shape", "dtype")
_TIED = ("further", "name")
_RANGE = ("begin", "end")
_LISTS = frozenset({"manifest", "tensors", "tied"})
_LONGEST = f.MAX_TENSOR_NAME_CHARS
_OPTIONAL = frozenset({"tensors", "tied", "before", "range"})

K = TypeVar("K", VersionKind, TensorKind)


def pack_head(head: Head) -> bytes:
    """The msgpack map of a head.

    Raises TypeError, ValueError or OverflowError where msgpack cannot say it.
    """
    packed = {key: attrgetter(attribute)(head) for key, (attribute, _) in _TABLES[type(head)].items()}
    if isinstance(head, UpdateHead):
        packed["metrics"] = {key: float(value) for key, value in head.metrics.items()}
    elif isinstance(head, VersionHead):
        packed["kind"] = str(head.kind)
        packed["manifest"] = [_contribution_row(item) for item in head.manifest]
        packed["tensors"] = None if head.tensors is None else [spec.row for spec in head.tensors]
        packed["tied"] = [list(pair) for pair in head.tied.items()] if head.tied else None
    packed = {key: value for key, value in packed.items() if value is not None or key not in _OPTIONAL}
    return bytes(msgpack.packb(packed, use_bin_type=True, default=_as_dict))


def unpack_head(kind: type[Head], data: memoryview) -> Head:
    """The head of this kind from its map. Raises Rejected (MALFORMED, or UNSUPPORTED for a new kind of version)."""
    table = _TABLES[kind]
    found = f.read_fields(data, table, _LISTS)
    values: dict[str, Any] = {attribute: read(found, key) for key, (attribute, read) in table.items()}
    codec = CodecSpec(values.pop("codec.id"), values.pop("codec.params"))
    return kind(codec=codec, **values)


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"msgpack cannot say a {type(value).__name__}")


def _metrics(found: f.Fields, key: str) -> dict[str, float]:
    return {name: float(value) for name, value in f.numbers(found, key, MAX_METRICS).items()}


def _parent(found: f.Fields, key: str) -> int | None:
    # Below its own number, so that following parents always ends.
    return None if found.get(key) is None else f.integer(found, key, low=0, high=f.count(found, "number") - 1)


def _since(found: f.Fields, key: str) -> int:
    return f.integer(found, key, low=0, high=f.count(found, "version"))


def _parent_digest(found: f.Fields, key: str) -> bytes | None:
    return f.digest(found, key) if key in found else None


def _range(found: f.Fields, key: str) -> tuple[int, int] | None:
    if key not in found:
        return None
    ends = f.row(found[key], _RANGE, key)
    begin = f.count(ends, "begin")
    return begin, f.integer(ends, "end", low=begin + 1)


def _version_kind(found: f.Fields, key: str) -> VersionKind:
    kind = _one_of(VersionKind, f.name(found, key), "version")
    if kind is not VersionKind.FULL and found.get("parent") is None:
        raise f.malformed("a delta names no parent")
    if (kind is VersionKind.FRAGMENT and "range" not in found) or (kind is VersionKind.DELTA and "range" in found):
        raise f.malformed("a fragment has a range, and a delta has none")
    if kind is VersionKind.FULL and "tensors" not in found:
        raise f.malformed("a full version names no tensors")
    return kind


def _one_of(kinds: type[K], value: str, what: str) -> K:
    try:
        return kinds(value)
    except ValueError:
        raise Rejected(Reason.UNSUPPORTED, f"{what} of an unknown kind {value!r}") from None


def _manifest(found: f.Fields, key: str) -> tuple[Contribution, ...]:
    return tuple(_contribution(item) for item in f.items(found, key))


def _contribution_row(item: Contribution) -> list[object]:
    values = {key: getattr(item, attribute) for key, (attribute, _) in _CONTRIBUTION.items()}
    row = list((values | {"weight": float(item.weight), "clip": float(item.clip)}).values())
    return row if item.steps is None else [*row, float(item.steps)]


def _contribution(item: object) -> Contribution:
    found = f.row(item, tuple(_CONTRIBUTION), "manifest", "steps")
    values: dict[str, Any] = {attribute: read(found, key) for key, (attribute, read) in _CONTRIBUTION.items()}
    steps = f.finite(found, "steps") if "steps" in found else None
    if steps is not None and steps <= 0:
        raise f.malformed(f"a contribution of {steps} local steps")
    return Contribution(**values, steps=steps)


def _tensors(found: f.Fields, key: str) -> tuple[TensorSpec, ...] | None:
    return tuple(_tensor(item) for item in f.items(found, key)) if key in found else None


def _tied(found: f.Fields, key: str) -> dict[str, str] | None:
    pairs = [f.row(item, _TIED, key) for item in f.items(found, key)]
    names = [(f.name(pair, _TIED[0], _LONGEST), f.name(pair, _TIED[1], _LONGEST)) for pair in pairs]
    return dict(names) or None


def _tensor(item: object) -> TensorSpec:
    found = f.row(item, _TENSOR, "tensors", "kind")
    shape = [f.count({"dimension": size}, "dimension") for size in f.items(found, "shape")]
    name, dtype = f.name(found, "name", _LONGEST), f.name(found, "dtype")
    kind = _one_of(TensorKind, f.name(found, "kind"), "tensor") if "kind" in found else TensorKind.PARAMETER
    return TensorSpec(name, tuple(shape), dtype, kind)


# By key, in the order of writing: the attribute of the head, and how the field is read.
_Table = dict[str, tuple[str, Callable[[f.Fields, str], object]]]

_PAYLOAD: _Table = {
    "layout": ("layout_digest", f.digest),
    "codec": ("codec.id", f.count),
    "params": ("codec.params", partial(f.numbers, max_entries=MAX_CODEC_PARAMS)),
    "size": ("payload_size", f.count),
    "digest": ("payload_digest", f.digest),
}
_CONTRIBUTION: _Table = {
    "client": ("client_id", f.client_id),
    "seq": ("sequence", f.count),
    "partition": ("partition", f.count),
    "offset": ("offset", f.count),
    "n": ("num_examples", f.integer),
    "staleness": ("staleness", f.count),
    "weight": ("weight", f.finite),
    "clip": ("clip", f.finite),
    "digest": ("payload_digest", f.digest),
}
_TABLES: dict[type[Head], _Table] = {
    UpdateHead: {
        "client": ("client_id", f.client_id),
        "seq": ("sequence", f.count),
        "base": ("base_version", f.count),
        "n": ("num_examples", f.integer),
        **_PAYLOAD,
        "metrics": ("metrics", _metrics),
        "range": ("range", _range),
    },
    VersionHead: {
        "number": ("number", f.count),
        "parent": ("parent", _parent),
        "kind": ("kind", _version_kind),
        **_PAYLOAD,
        "weights": ("weights_digest", f.digest),
        "time": ("time_ms", partial(f.integer, low=0, high=f.MAX_TIME_MS)),
        "rule": ("rule", f.plain),
        "build": ("build", f.strings),
        "manifest": ("manifest", _manifest),
        "tensors": ("tensors", _tensors),
        "tied": ("tied", _tied),
        "before": ("parent_digest", _parent_digest),
        "range": ("range", _range),
    },
    SnapshotHead: {"version": ("version", f.count), "tensor": ("tensor", f.name), **_PAYLOAD},
    LocalModelHead: {
        "client": ("client_id", f.client_id),
        "version": ("version", f.count),
        "since": ("since", _since),
        **_PAYLOAD,
    },
}

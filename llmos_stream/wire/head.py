"""The head maps of an update, a version and a snapshot, to and from bytes (fields: see `wire.frame`)."""

from collections.abc import Mapping
from typing import Any, TypeVar

import msgpack  # type: ignore[import-untyped]

from llmos_stream.errors import Reason, Rejected
from llmos_stream.types import (
    CodecSpec,
    Contribution,
    Head,
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

_PAYLOAD = ("layout", "codec", "params", "size", "digest")
_UPDATE = frozenset({"client", "seq", "base", "n", "metrics", *_PAYLOAD})
_SNAPSHOT = frozenset({"version", "tensor", *_PAYLOAD})
_LISTS = frozenset({"manifest", "tensors"})
_VERSION = frozenset({"number", "parent", "before", "kind", "weights", "time", "rule", "build", *_PAYLOAD, *_LISTS})
_CONTRIBUTION = ("client", "seq", "partition", "offset", "n", "staleness", "weight", "clip", "digest")
_TENSOR = ("name", "shape", "dtype")

K = TypeVar("K", VersionKind, TensorKind)


def pack_update(head: UpdateHead) -> bytes:
    """The msgpack map of an update's head.

    Raises TypeError, ValueError or OverflowError where msgpack cannot say it.
    """
    return _pack(
        {
            "client": head.client_id,
            "seq": head.sequence,
            "base": head.base_version,
            "n": head.num_examples,
            **_payload(head),
            "metrics": {key: float(value) for key, value in head.metrics.items()},
        }
    )


def pack_version(head: VersionHead) -> bytes:
    """The msgpack map of a version's head. Raises as `pack_update` does."""
    packed = {
        "number": head.number,
        "parent": head.parent,
        "kind": str(head.kind),
        **_payload(head),
        "weights": head.weights_digest,
        "time": head.time_ms,
        "rule": head.rule,
        "build": head.build,
        "manifest": [
            (
                item.client_id,
                item.sequence,
                item.partition,
                item.offset,
                item.num_examples,
                item.staleness,
                float(item.weight),
                float(item.clip),
                item.payload_digest,
            )
            for item in head.manifest
        ],
    }
    if head.parent_digest is not None:
        packed["before"] = head.parent_digest
    if head.tensors is not None:
        packed["tensors"] = [spec.row for spec in head.tensors]
    return _pack(packed)


def pack_snapshot(head: SnapshotHead) -> bytes:
    """The msgpack map of a snapshot's head. Raises as `pack_update` does."""
    return _pack({"version": head.version, "tensor": head.tensor, **_payload(head)})


def unpack_update(data: memoryview) -> UpdateHead:
    """The head of an update from its map. Raises Rejected(MALFORMED)."""
    found = f.read_fields(data, _UPDATE)
    return UpdateHead(
        client_id=f.client_id(found, "client"),
        sequence=f.integer(found, "seq", low=0),
        base_version=f.integer(found, "base", low=0),
        num_examples=f.integer(found, "n"),
        layout_digest=f.digest(found, "layout"),
        codec=_codec(found),
        payload_size=f.integer(found, "size", low=0),
        payload_digest=f.digest(found, "digest"),
        metrics={key: float(value) for key, value in f.numbers(found, "metrics", MAX_METRICS).items()},
    )


def unpack_version(data: memoryview) -> VersionHead:
    """The head of a version from its map. Raises Rejected (MALFORMED, or UNSUPPORTED for a new kind of version)."""
    found = f.read_fields(data, _VERSION, _LISTS)
    number = f.integer(found, "number", low=0)
    # Below its own number, so that following parents always ends.
    parent = None if found.get("parent") is None else f.integer(found, "parent", low=0, high=number - 1)
    kind = _one_of(VersionKind, f.name(found, "kind"), "version")
    if kind is VersionKind.DELTA and parent is None:
        raise f.malformed("a delta names no parent")
    if kind is VersionKind.FULL and "tensors" not in found:
        raise f.malformed("a full version names no tensors")
    return VersionHead(
        number=number,
        parent=parent,
        kind=kind,
        layout_digest=f.digest(found, "layout"),
        codec=_codec(found),
        payload_size=f.integer(found, "size", low=0),
        payload_digest=f.digest(found, "digest"),
        weights_digest=f.digest(found, "weights"),
        time_ms=f.integer(found, "time", low=0, high=f.MAX_TIME_MS),
        manifest=tuple(_contribution(item) for item in f.items(found, "manifest")),
        tensors=tuple(_tensor(item) for item in f.items(found, "tensors")) if "tensors" in found else None,
        rule=f.plain(found, "rule"),
        build=f.strings(found, "build"),
        parent_digest=f.digest(found, "before") if "before" in found else None,
    )


def unpack_snapshot(data: memoryview) -> SnapshotHead:
    """The head of a snapshot from its map. Raises Rejected(MALFORMED)."""
    found = f.read_fields(data, _SNAPSHOT)
    return SnapshotHead(
        version=f.integer(found, "version", low=0),
        tensor=f.name(found, "tensor"),
        layout_digest=f.digest(found, "layout"),
        codec=_codec(found),
        payload_size=f.integer(found, "size", low=0),
        payload_digest=f.digest(found, "digest"),
    )


def _payload(head: Head) -> dict[str, Any]:
    return {
        "layout": head.layout_digest,
        "codec": head.codec.id,
        "params": head.codec.params,
        "size": head.payload_size,
        "digest": head.payload_digest,
    }


def _pack(packed: Mapping[str, Any]) -> bytes:
    return bytes(msgpack.packb(packed, use_bin_type=True, default=_as_dict))


def _as_dict(value: object) -> dict[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"msgpack cannot say a {type(value).__name__}")


def _codec(found: f.Fields) -> CodecSpec:
    return CodecSpec(id=f.integer(found, "codec", low=0), params=f.numbers(found, "params", MAX_CODEC_PARAMS))


def _one_of(kinds: type[K], value: str, what: str) -> K:
    try:
        return kinds(value)
    except ValueError:
        raise Rejected(Reason.UNSUPPORTED, f"{what} of an unknown kind {value!r}") from None


def _contribution(item: object) -> Contribution:
    found = f.row(item, _CONTRIBUTION, "manifest")
    return Contribution(
        client_id=f.client_id(found, "client"),
        sequence=f.integer(found, "seq", low=0),
        partition=f.integer(found, "partition", low=0),
        offset=f.integer(found, "offset", low=0),
        num_examples=f.integer(found, "n"),
        staleness=f.integer(found, "staleness", low=0),
        weight=f.finite(found, "weight"),
        clip=f.finite(found, "clip"),
        payload_digest=f.digest(found, "digest"),
    )


def _tensor(item: object) -> TensorSpec:
    found = f.row(item, _TENSOR, "tensors", "kind")
    shape = [f.integer({"dimension": size}, "dimension", low=0) for size in f.items(found, "shape")]
    name, dtype = f.name(found, "name", f.MAX_TENSOR_NAME_CHARS), f.name(found, "dtype")
    kind = _one_of(TensorKind, f.name(found, "kind"), "tensor") if "kind" in found else TensorKind.PARAMETER
    return TensorSpec(name, tuple(shape), dtype, kind)

"""A head as plain data for people: what `inspect` shows and what a quarantine entry holds."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta

from llmos_stream.types import Contribution, Head, Number, SnapshotHead, TensorSpec, UpdateHead, VersionHead

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def describe(head: Head, *, signature: bytes | None = None, full: bool = True) -> dict[str, object]:
    """Everything the head says, JSON-able: digests in hex, codecs by name, numbers that are not finite as strings.

    `full=False` counts contributions and tensors in place of listing them and leaves `rule` and
    `build` out, which keeps the result small whatever the head.
    """
    match head:
        case UpdateHead():
            found = _update(head)
        case VersionHead():
            found = _version(head, full)
        case SnapshotHead():
            found = {"kind": "snapshot", "version": head.version, "tensor": head.tensor}
        case _:
            own = {"client_id": head.client_id, "version": head.version, "since": head.since}
            found = {"kind": "local model", **own}
    return {
        **found,
        "layout_digest": head.layout_digest.hex(),
        "codec": head.codec.label,
        "codec_params": _numbers(head.codec.params),
        "payload_size": head.payload_size,
        "payload_digest": head.payload_digest.hex(),
        "signature": None if signature is None else f"{signature.hex()} (not verified)",
    }


def _update(head: UpdateHead) -> dict[str, object]:
    return {
        "kind": "update",
        "client_id": head.client_id,
        "sequence": head.sequence,
        "base_version": head.base_version,
        "num_examples": head.num_examples,
        "metrics": _numbers(head.metrics),
        **_range(head),
    }


def _range(head: UpdateHead | VersionHead) -> dict[str, object]:
    return {} if head.range is None else {"range": list(head.range)}


def _version(head: VersionHead, full: bool) -> dict[str, object]:
    found: dict[str, object] = {
        "kind": f"{head.kind} version",
        "number": head.number,
        "parent": head.parent,
        "parent_digest": None if head.parent_digest is None else head.parent_digest.hex(),
        "weights_digest": head.weights_digest.hex(),
        "time": (_EPOCH + timedelta(milliseconds=head.time_ms)).isoformat(timespec="milliseconds"),
        **_range(head),
    }
    if not full:
        return found | {
            "contributions": len(head.manifest),
            "tensors": None if head.tensors is None else len(head.tensors),
        }
    return found | {
        "manifest": [_contribution(item) for item in head.manifest],
        "tensors": None if head.tensors is None else [_tensor(item) for item in head.tensors],
        "tied": None if head.tied is None else dict(head.tied),
        "rule": _plain(head.rule),
        "build": dict(head.build),
    }


def _contribution(item: Contribution) -> dict[str, object]:
    numbers = {"weight": _number(item.weight), "clip": _number(item.clip)}
    found = asdict(item) | numbers | {"payload_digest": item.payload_digest.hex()}
    if item.steps is None:
        del found["steps"]
    return found


def _tensor(item: TensorSpec) -> dict[str, object]:
    return item._asdict() | {"shape": list(item.shape)}


def _numbers(values: Mapping[str, Number]) -> dict[str, Number | str]:
    return {name: _number(value) for name, value in values.items()}


def _number(value: Number) -> Number | str:
    return value if math.isfinite(value) else str(value)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value

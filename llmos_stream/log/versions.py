"""Global versions between weights and messages, full ones and deltas on their parents."""

import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llmos_stream.codec import Layout, apply_delta, decode, encode, weights_digest, with_buffers
from llmos_stream.config import Settings, WireSettings
from llmos_stream.config.aggregation import MOST_FRAGMENTS
from llmos_stream.core import Rule
from llmos_stream.errors import Reason, Rejected
from llmos_stream.log.admission import check_payload_size, head_of, topic_assembler
from llmos_stream.storage.spool import Spooled, spooled
from llmos_stream.types import CodecId, CodecSpec, Contribution, Part, VersionHead, VersionKind
from llmos_stream.wire import Assembler, MemoryStore, Parts, Prelude, Store, payload_digest

ROLLED_BACK_TO = "rolled_back_to"
"""In a version's rule: the version that it equals. Such a version has no contributions."""
STARTED_FROM = "started_from"
"""In a version's rule: where the weights of version 0 are from, unless the task made them (`registry.warm_start`)."""
FULL_CODEC = CodecSpec(CodecId.FLOAT32)


@dataclass(frozen=True, slots=True)
class Version:
    """A decoded version: its head, its layout and its weights (flat, float32), and the digest of its prelude."""

    head: VersionHead
    layout: Layout
    weights: Tensor
    digest: bytes = b""


@cache
def build() -> Mapping[str, str]:
    """The torch build and CPU type: kernels may round differently elsewhere."""
    return {"torch": torch.__version__, "cpu": platform.processor() or platform.machine()}


def local_rule(settings: Settings) -> Rule:
    """The rule that this machine's settings make."""
    return Rule(settings.aggregation, settings.staleness, settings.server_optimizer)


def rolled_back_to(head: VersionHead) -> int | None:
    """The older version that this one equals, where it was published to go back to that."""
    version = head.rule.get(ROLLED_BACK_TO)
    return version if isinstance(version, int) and head.parent is not None and 0 <= version < head.parent else None


def started_from(head: VersionHead) -> Mapping[str, object] | None:
    """Where the weights of the run's version 0 are from; None: the task."""
    found = head.rule.get(STARTED_FROM)
    return found if isinstance(found, Mapping) else None


def fragments_of(rule: Mapping[str, object]) -> int:
    """Into how many fragments the model is cut, by the rule of a version; it came from the log: it may be anything."""
    aggregation = rule.get("aggregation")
    count = aggregation.get("fragments", 1) if isinstance(aggregation, Mapping) else 1
    return count if isinstance(count, int) and not isinstance(count, bool) and 1 <= count <= MOST_FRAGMENTS else 1


def initial_weights(head: VersionHead) -> str:
    """Say what a version without contributions and without a parent holds."""
    match started_from(head):
        case {"file": str(name), "sha256": str(digest)}:
            return f"the weights of {name} (SHA-256 {digest[:12]})"
        case {"federation": str(name), "version": int(number), "weights_digest": str(digest)}:
            return f"the weights of version {number} of federation {name} (digest {digest[:12]})"
        case _:
            return "the initial weights"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a version comes from: its parent, what was folded, under which rule, and when (milliseconds)."""

    parent: int | None
    manifest: tuple[Contribution, ...]
    rule: Mapping[str, object]
    time_ms: int
    parent_digest: bytes | None = None


def encode_version(
    number: int,
    weights: Tensor,
    layout: Layout,
    origin: Origin,
    store: Store | None = None,
    fragment: tuple[int, int] | None = None,
) -> tuple[VersionHead, Parts]:
    """A full version's head and payload, kept in `store` (None: in memory). It may have moved one `fragment` alone.

    Lossless: every reader gets the bytes the digest names.
    """
    payload = spooled(encode(weights, FULL_CODEC), MemoryStore() if store is None else store)
    return _head(number, VersionKind.FULL, weights, layout, origin, FULL_CODEC, payload, fragment), payload.parts


def delta_version(
    number: int,
    weights: Tensor,
    layout: Layout,
    origin: Origin,
    codec: CodecSpec,
    frames: Iterable[bytes],
    fragment: tuple[int, int] | None = None,
) -> tuple[VersionHead, Parts]:
    """The head and the payload of a delta version: `frames` make the parameters of `weights` of its parent's.

    Where it is of one `fragment`, they are of its range alone.
    """
    moved = layout.moving(weights, fragment)[1]
    payload = spooled(with_buffers(frames, moved), MemoryStore())
    kind = VersionKind.DELTA if fragment is None else VersionKind.FRAGMENT
    return _head(number, kind, weights, layout, origin, codec, payload, fragment), payload.parts


def _head(
    number: int,
    kind: VersionKind,
    weights: Tensor,
    layout: Layout,
    origin: Origin,
    codec: CodecSpec,
    payload: Spooled,
    fragment: tuple[int, int] | None,
) -> VersionHead:
    return VersionHead(
        number=number,
        parent=origin.parent,
        kind=kind,
        layout_digest=layout.digest,
        codec=codec,
        payload_size=payload.size,
        payload_digest=payload.digest,
        weights_digest=weights_digest(weights),
        time_ms=origin.time_ms,
        manifest=origin.manifest,
        tensors=layout.tensors if kind is VersionKind.FULL else None,
        tied=layout.tied if kind is VersionKind.FULL and layout.tied else None,
        rule=origin.rule,
        build=build(),
        parent_digest=origin.parent_digest,
        range=fragment,
    )


def decode_version(head: VersionHead, parts: Iterable[Part], room: Tensor | None = None) -> Version:
    """Verify and decode a full version, into `room` where it is as large.

    Raises Rejected for anything its digests do not confirm.
    """
    layout = layout_of(head)
    _check_payload(head, parts)
    weights = decode(
        parts, head.codec, layout.numel, out=room if room is not None and room.numel() == layout.numel else None
    )
    _check_weights(head, weights)
    return Version(head, layout, weights)


def layout_of(head: VersionHead) -> Layout:
    """The layout that the head of a full version names. Raises Rejected for any other head."""
    if head.kind is not VersionKind.FULL or head.tensors is None:
        raise Rejected(Reason.UNSUPPORTED, f"version {head.number} is not a full version")
    layout = Layout.from_specs(head.tensors, head.tied)
    if layout.digest != head.layout_digest:
        raise Rejected(Reason.WRONG_LAYOUT, f"version {head.number}: the tensors do not match the layout digest")
    return layout


def apply_version(before: Version, head: VersionHead, parts: Iterable[Part]) -> Version:
    """Verify a delta version and make it of its parent, whose weights are overwritten, and spoilt by an error.

    A fragment is written over its range alone. Raises Rejected where it is no delta on `before`, and for anything its
    digests do not confirm.
    """
    if head.kind is VersionKind.FULL or head.parent != before.head.number:
        raise Rejected(Reason.MALFORMED, f"version {head.number} is no delta on version {before.head.number}")
    _check_payload(head, parts)
    try:
        parameters, buffers = before.layout.moving(before.weights, head.range)
    except ValueError as error:
        raise Rejected(Reason.WRONG_LAYOUT, f"version {head.number}: {error}") from None
    apply_delta(parameters, parts, head.codec, buffers)
    _check_weights(head, before.weights)
    return Version(head, before.layout, before.weights)


def check_follows(before: VersionHead, digest: bytes, head: VersionHead) -> None:
    """Raise Rejected(MALFORMED) unless `head` is what a run publishes after `before`, whose prelude has this digest."""
    if (head.parent, head.number) != (before.number, before.number + 1):
        raise Rejected(Reason.MALFORMED, f"version {head.number} does not follow version {before.number}")
    if head.layout_digest != before.layout_digest:
        raise Rejected(Reason.WRONG_LAYOUT, f"version {head.number} is of another model than its parent")
    if head.parent_digest is None and before.parent_digest is None:
        return  # both are from before these digests came
    if head.parent_digest != digest:
        raise Rejected(
            Reason.MALFORMED, f"version {head.number} follows another version {before.number} than that of this run"
        )


def _check_payload(head: VersionHead, parts: Iterable[Part]) -> None:
    if payload_digest(parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"version {head.number}: the payload does not match its digest")


def _check_weights(head: VersionHead, weights: Tensor) -> None:
    if weights_digest(weights) != head.weights_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"version {head.number}: the weights do not match their digest")


def admit_version(prelude: Prelude) -> None:
    """Refuse what is no version, or claims a payload that its layout cannot need, before it is collected."""
    head = head_of(VersionHead, prelude)
    if head.tensors is not None:
        check_payload_size(head, Layout.from_specs(head.tensors).numel)


def version_assembler(wire: WireSettings) -> Assembler:
    """Collects versions and refuses everything else before it is collected."""
    return topic_assembler(admit_version, wire)

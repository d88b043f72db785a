"""Global versions between weights and messages, and how to fetch one from the log."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llmos_stream.broker import Reader, TopicPartition
from llmos_stream.codec import Layout, decode, encode, max_payload_size, payload_digest, weights_digest
from llmos_stream.config import Settings, WireSettings
from llmos_stream.errors import ConfigError, Reason, Rejected
from llmos_stream.roles.control_records import Pointer
from llmos_stream.roles.messages import fetch_message
from llmos_stream.runtime import Offload
from llmos_stream.types import CodecId, CodecSpec, Contribution, Head, Part, VersionHead, VersionKind
from llmos_stream.wire import Assembler, Message, pack_prelude

_FULL_CODEC = CodecSpec(CodecId.FLOAT32)


@dataclass(frozen=True, slots=True)
class Version:
    """A decoded version: its head, its layout and its weights (flat, float32)."""

    head: VersionHead
    layout: Layout
    weights: Tensor


@cache
def build() -> Mapping[str, str]:
    """The torch build and CPU type: kernels may round differently elsewhere."""
    return {"torch": torch.__version__, "cpu": platform.processor() or platform.machine()}


def check_fits(layout: Layout, settings: Settings) -> None:
    """Raise ConfigError when versions of this layout could not be written, or not be read by anyone."""
    widest = Contribution("c" * 128, 2**63 - 1, 2**31 - 1, 2**63 - 1, 2**63 - 1, 2**31 - 1, 1.0, 1.0, bytes(32))
    head = VersionHead(
        number=2**63 - 1,
        parent=2**63 - 2,
        kind=VersionKind.FULL,
        layout_digest=layout.digest,
        codec=_FULL_CODEC,
        payload_size=max_payload_size(_FULL_CODEC, layout.numel),
        payload_digest=bytes(32),
        weights_digest=bytes(32),
        time_ms=0,
        manifest=(widest,) * settings.aggregation.buffer_size,
        tensors=layout.tensors,
        rule=rule_of(settings),
        build=build(),
    )
    try:
        size = len(pack_prelude(head)) + head.payload_size
    except ValueError as error:
        raise ConfigError(
            f"task.share, aggregation.buffer_size: a version's head has no room for {len(layout.tensors)} tensors and "
            f"{settings.aggregation.buffer_size} contributions ({error}); share fewer or make the buffer smaller"
        ) from None
    flat_bytes = 4 * layout.numel
    for name, gib, needed in (
        ("topics.models_retention_gib", settings.topics.models_retention_gib, size),
        ("topics.snapshots_retention_gib", settings.topics.snapshots_retention_gib, _moments(settings) * flat_bytes),
    ):
        if needed > gib * (1 << 30):
            raise ConfigError(
                f"{name}: {gib:g} GiB do not hold what one version needs ({needed / (1 << 30):.2f} GiB); raise it"
            )
    if size > settings.wire.pending_bytes:
        raise ConfigError(
            f"wire.pending_bytes: {settings.wire.pending_bytes} is less than a version takes ({size} bytes); "
            "raise it for every role"
        )


def _moments(settings: Settings) -> int:
    """How many flat vectors the server optimiser remembers."""
    optimizer = settings.server_optimizer
    return int(optimizer.momentum > 0) if optimizer.name == "sgd" else 2


def rule_of(settings: Settings) -> dict[str, object]:
    """The aggregation settings that a version is made under."""
    sections = ("aggregation", "staleness", "server_optimizer")
    return {name: getattr(settings, name).model_dump(mode="json") for name in sections}


def encode_version(
    number: int,
    weights: Tensor,
    layout: Layout,
    *,
    parent: int | None,
    manifest: tuple[Contribution, ...],
    rule: Mapping[str, object],
    time_ms: int,
) -> tuple[VersionHead, list[bytes]]:
    """A full version's head and payload parts. Lossless: every reader gets the bytes the digest names."""
    parts = list(encode(weights, _FULL_CODEC))
    head = VersionHead(
        number=number,
        parent=parent,
        kind=VersionKind.FULL,
        layout_digest=layout.digest,
        codec=_FULL_CODEC,
        payload_size=sum(map(len, parts)),
        payload_digest=payload_digest(parts),
        weights_digest=weights_digest(weights),
        time_ms=time_ms,
        manifest=manifest,
        tensors=layout.tensors,
        rule=rule,
        build=build(),
    )
    return head, parts


def decode_version(head: VersionHead, parts: Sequence[Part]) -> Version:
    """Verify and decode a full version. Raises Rejected for anything its digests do not confirm."""
    if head.kind is not VersionKind.FULL or head.tensors is None:
        raise Rejected(Reason.UNSUPPORTED, f"version {head.number} is not a full version")
    layout = Layout.from_specs(head.tensors)
    if layout.digest != head.layout_digest:
        raise Rejected(Reason.WRONG_LAYOUT, f"version {head.number}: the tensors do not match the layout digest")
    if payload_digest(parts) != head.payload_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"version {head.number}: the payload does not match its digest")
    weights = decode(parts, head.codec, layout.numel)
    if weights_digest(weights) != head.weights_digest:
        raise Rejected(Reason.WRONG_DIGEST, f"version {head.number}: the weights do not match their digest")
    return Version(head, layout, weights)


def admit_version(head: Head) -> None:
    """Refuse what is no version, or claims a payload that its layout cannot need, before it is collected."""
    if not isinstance(head, VersionHead):
        raise Rejected(Reason.UNSUPPORTED, "this topic carries versions")
    if head.tensors is not None:
        limit = max_payload_size(head.codec, Layout.from_specs(head.tensors).numel)
        if head.payload_size > limit:
            raise Rejected(Reason.TOO_LARGE, f"payload of {head.payload_size} bytes, at most {limit} needed")


def version_assembler(wire: WireSettings) -> Assembler:
    return Assembler(admit_version, max_pending_bytes=wire.pending_bytes, max_idle_seconds=wire.incomplete_seconds)


async def fetch_version(
    reader: Reader, topic: str, pointer: Pointer, *, wire: WireSettings, offload: Offload, timeout_seconds: float
) -> Version:
    """Read and decode the version that `pointer` names.

    Raises OffsetGone when retention has deleted it (a newer one exists: read control again),
    Rejected when what is there is not that version, BrokerUnavailable past the time-out.
    """
    at = TopicPartition(topic, pointer.partition)
    message = await fetch_message(reader, at, pointer.offset, version_assembler(wire), timeout_seconds)
    head = version_head(message)
    if head.number != pointer.version:
        raise Rejected(Reason.MALFORMED, f"found version {head.number} where {pointer.version} should be")
    return await offload.run(decode_version, head, message.parts)


def version_head(message: Message) -> VersionHead:
    if not isinstance(message.head, VersionHead):
        raise Rejected(Reason.UNSUPPORTED, "this topic carries versions")
    return message.head

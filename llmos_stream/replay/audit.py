"""Where a version comes from: each contribution, what it counted for, and whether its update is still in the log."""

from dataclasses import dataclass
from enum import StrEnum, unique

from llmos_stream.core.replay import Rule
from llmos_stream.errors import Rejected
from llmos_stream.replay.errors import UpdateMissing
from llmos_stream.replay.index import Entry
from llmos_stream.replay.log import ReplayLog
from llmos_stream.replay.updates import UpdateSource
from llmos_stream.types import Contribution, VersionHead
from llmos_stream.wire import payload_digest


@unique
class Presence(StrEnum):
    PRESENT = "present"  # in the log, and its payload matches the manifest's digest
    GONE = "gone"  # deleted by retention
    DIFFERS = "differs"  # something else is in its place


@dataclass(frozen=True, slots=True)
class Item:
    """A contribution. `share` is None where this release does not understand the rule."""

    contribution: Contribution
    base_version: int
    share: float | None
    presence: Presence
    detail: str


@dataclass(frozen=True, slots=True)
class Audit:
    """A version, where it lies, and its contributions in the order they were folded."""

    entry: Entry
    items: list[Item]
    moments_kept: bool | None
    """Whether the server optimiser's moments after this version are in the log; None where its rule has none."""


async def audit(log: ReplayLog, number: int) -> Audit:
    """Look into a version and at every update it names. Raises Missing for a version that is not in the log."""
    entry = log.index.entry(number)
    head = entry.head
    items: list[Item] = []
    if head.manifest and head.parent is not None:
        shares = _shares(head)
        source = await log.updates(head.manifest, log.index.layout(number))
        for item, share in zip(head.manifest, shares, strict=True):
            presence, detail = await _presence(log, source, item)
            items.append(Item(item, head.parent - item.staleness, share, presence, detail))
    return Audit(entry, items, number in log.index.moments if _has_moments(head) else None)


async def _presence(log: ReplayLog, source: UpdateSource, item: Contribution) -> tuple[Presence, str]:
    try:
        message = await source.take(item)
    except UpdateMissing as missing:
        return Presence.GONE if missing.gone else Presence.DIFFERS, str(missing)
    if await log.offload.run(payload_digest, message.parts) != item.payload_digest:
        return Presence.DIFFERS, "its payload does not match its digest"
    return Presence.PRESENT, ""


def _has_moments(head: VersionHead) -> bool:
    try:
        return bool(Rule.of(head.rule).moments)
    except Rejected:
        return False


def _shares(head: VersionHead) -> list[float] | list[None]:
    """What each delta was multiplied with: fedbuff `n s(tau) clip / sum n` in its buffer, fedasync the mixing rate."""
    try:
        strategy = Rule.of(head.rule).aggregation.strategy
    except Rejected:
        return [None] * len(head.manifest)
    if strategy == "fedasync":
        return [item.weight for item in head.manifest]
    examples = max(sum(item.num_examples for item in head.manifest), 1)
    return [item.weight * item.clip / examples for item in head.manifest]

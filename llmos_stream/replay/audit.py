"""What a version was made of: each contribution, its share, and whether its update is still in the log."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum, unique

from llmos_stream.core import Rule
from llmos_stream.errors import Rejected
from llmos_stream.log.admission import head_of
from llmos_stream.log.versions import fragments_of
from llmos_stream.replay.index import Entry, UpdateMissing
from llmos_stream.replay.replay_log import ReplayLog
from llmos_stream.replay.updates import RecordedUpdates
from llmos_stream.types import Contribution, UpdateHead, VersionHead
from llmos_stream.wire import payload_digest


@unique
class Presence(StrEnum):
    """Whether the log still holds the update of a contribution."""

    PRESENT = "present"  # in the log, and its payload matches the manifest's digest
    GONE = "gone"  # deleted by retention
    DIFFERS = "differs"  # something else is in its place


@dataclass(frozen=True, slots=True)
class AuditedContribution:
    """A contribution. `share` is None where the rule defines none, or is not understood here.

    `base_version` is None where the update is gone that would tell: one of a fragment, which may have waited while
    others moved.
    """

    contribution: Contribution
    base_version: int | None
    share: float | None
    presence: Presence
    detail: str


@dataclass(frozen=True, slots=True)
class Audit:
    """A version, where it is in the log, and its contributions in the order of folding."""

    entry: Entry
    items: list[AuditedContribution]
    share: str | None
    """What the shares mean; None where there are none."""
    moments_kept: bool | None
    """Whether the server optimiser's moments after this version are in the log; None where its rule has none."""


async def audit(log: ReplayLog, number: int) -> Audit:
    """Look at a version and at every update that it names.

    Raises:
        Missing: The version is not in the log.
    """
    entry = log.index.entry(number)
    head = entry.head
    items: list[AuditedContribution] = []
    rule, share = _rule(log, head), None
    if head.manifest and head.parent is not None:
        shares, share = _shares(rule, head)
        cut = fragments_of(head.rule) > 1
        source = await log.updates(head.manifest, number)
        for item, part in zip(head.manifest, shares, strict=True):
            base, presence, detail = await _presence(log, source, item)
            if not cut:
                base = head.parent - item.staleness
            items.append(AuditedContribution(item, base, part, presence, detail))
    kept = bool(log.index.moments(number)) if rule is not None and rule.moments else None
    return Audit(entry, items, share, kept)


async def _presence(log: ReplayLog, source: RecordedUpdates, item: Contribution) -> tuple[int | None, Presence, str]:
    try:
        message = await source.take(item)
    except UpdateMissing as missing:
        return None, Presence.GONE if missing.gone else Presence.DIFFERS, str(missing)
    if await log.offload.run(payload_digest, message.parts) != item.payload_digest:
        return None, Presence.DIFFERS, "its payload does not match its digest"
    return head_of(UpdateHead, message).base_version, Presence.PRESENT, ""


def _rule(log: ReplayLog, head: VersionHead) -> Rule | None:
    """Return None where it is not understood here, or its strategy is not installed."""
    try:
        rule = log.rule(head)
        rule.strategy()
    except Rejected:
        return None
    return rule


def _shares(rule: Rule | None, head: VersionHead) -> tuple[Sequence[float | None], str | None]:
    """Return the share of each update in the version, and what the shares mean."""
    shares = None if rule is None else rule.strategy().shares(head.manifest)
    if rule is None or shares is None:
        return [None] * len(head.manifest), None
    return shares, rule.strategy().share

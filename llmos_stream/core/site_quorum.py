"""When what sites have measured of a version counts: once enough of them have reported on it, or after a deadline.

Let Q be the quorum. A version counts, once, with all the reports that are there

    as soon as             Q sites have reported on it
    after the deadline     where at least half of Q have; with fewer it never counts

so that one site never speaks for many. The deadline begins with the first report on the version. Only sites that take
part count: whose update was folded, as far as the aggregator remembers, so that a name costs work. That is looked at
when a version is to count, and not before: who reports on version 0 has not sent an update yet.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Generic, NamedTuple, TypeVar

Report = TypeVar("Report")

MOST = 4
"""The highest quorum where no setting says it: of so many updates a version is made at most, then."""
VERSIONS_KEPT = 64
"""So many of the newest versions are waited for, and so many are known to have counted."""
SITES_KEPT = 1024
"""Reports on a version that are kept."""


class Counted(NamedTuple, Generic[Report]):
    """A version that counts, and what which sites said of it."""

    version: int
    reports: Mapping[str, Report]


@dataclass(slots=True)
class _Pending(Generic[Report]):
    since: float
    offset: int
    reports: dict[str, Report] = field(default_factory=dict)
    is_late: bool = False
    """The deadline has passed, and too few had reported."""


class SiteQuorum(Generic[Report]):
    """Gathers reports until they count. `quorum` None: more than half of those that take part, but at most MOST."""

    def __init__(self, quorum: int | None, deadline_seconds: float) -> None:
        self._quorum = quorum
        self._seconds = deadline_seconds
        self._pending: dict[int, _Pending[Report]] = {}
        self._counted: OrderedDict[int, None] = OrderedDict()
        self._changed: set[int] = set()

    def take(
        self, version: int, site: str, report: Report, offset: int, now: float, takes_part: Callable[[str], bool]
    ) -> bool:
        """Take in a report whose record is at `offset`. False: it makes no difference any more."""
        if version in self._counted or version < self._floor():
            return False
        pending = self._pending.setdefault(version, _Pending(now, offset))
        if site in pending.reports:
            return False
        if len(pending.reports) >= SITES_KEPT and not _make_room(pending.reports, site, takes_part):
            return False
        pending.reports[site] = report
        self._changed.add(version)
        while len(self._pending) > VERSIONS_KEPT:
            self._drop(min(self._pending))
        return True

    def look_again(self) -> None:
        """Others may take part now than before."""
        self._changed |= self._pending.keys()

    def counted(self, takes_part: Callable[[str], bool], taking_part: int, now: float) -> list[Counted[Report]]:
        """The versions that have come to count, in their order."""
        late = {at for at, one in self._pending.items() if not one.is_late and now - one.since >= self._seconds}
        looked_at, self._changed = (self._changed | late) & self._pending.keys(), set()
        quorum = min(taking_part // 2 + 1, MOST) if self._quorum is None else self._quorum
        found = []
        for version in sorted(looked_at):
            pending = self._pending[version]
            pending.is_late = pending.is_late or version in late
            reports = {site: report for site, report in pending.reports.items() if takes_part(site)}
            if len(reports) >= (max(1, (quorum + 1) // 2) if pending.is_late else quorum):
                found.append(Counted(version, reports))
                self._drop(version)
                self._note(version)
        return found

    def waiting(self, takes_part: Callable[[str], bool]) -> list[tuple[int, int]]:
        """(version, reports that could count) of those past their deadline on which too few sites have reported."""
        late = [(version, one) for version, one in sorted(self._pending.items()) if one.is_late]
        return [(version, sum(map(takes_part, one.reports))) for version, one in late]

    @property
    def oldest_offset(self) -> int | None:
        """The record to read again from, so that nothing that waits is lost; None where nothing does."""
        return min((one.offset for one in self._pending.values() if not one.is_late), default=None)

    def dump(self) -> list[int]:
        """Which versions have counted, as JSON can say it. What waits is in the log still."""
        return list(self._counted)

    def load(self, dumped: object) -> None:
        """Go on from what `dump` gave; anything else is passed over."""
        known = dumped if isinstance(dumped, list) else []
        for version in known[-VERSIONS_KEPT:]:
            if isinstance(version, int) and not isinstance(version, bool):
                self._note(version)

    def _floor(self) -> int:
        """Below this a version is too old to be waited for."""
        return max([*self._counted, *self._pending], default=0) - VERSIONS_KEPT

    def _note(self, version: int) -> None:
        self._counted[version] = None
        if len(self._counted) > VERSIONS_KEPT:
            del self._counted[min(self._counted)]

    def _drop(self, version: int) -> None:
        del self._pending[version]


def _make_room(reports: dict[str, Report], site: str, takes_part: Callable[[str], bool]) -> bool:
    """Whether the report of one that takes part has taken the place of a stranger's."""
    stranger = next((other for other in reports if not takes_part(other)), None) if takes_part(site) else None
    if stranger is not None:
        del reports[stranger]
    return stranger is not None

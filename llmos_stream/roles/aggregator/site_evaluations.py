"""What the sites' evaluations say together, for the stop rule and the guard: the aggregator's shell of `SiteQuorum`."""

import logging
import math
import statistics
from collections.abc import Callable, Mapping
from typing import NamedTuple

from llmos_stream.config import StopSettings
from llmos_stream.core.site_quorum import SiteQuorum
from llmos_stream.runtime import Clock
from llmos_stream.runtime.logs import Sparing
from llmos_stream.types import Event
from llmos_stream.wire.evaluations import MOST_METRICS, SiteReport, metric_names, site_of, site_report, together

logger = logging.getLogger(__name__)
logger.addFilter(Sparing())


class Roster(NamedTuple):
    """Who takes part, as the aggregator knows it: by its id, and how many at the moment."""

    takes_part: Callable[[str], bool]
    taking_part: Callable[[], int]


NOBODY = Roster(lambda _: False, lambda: 0)


class SiteVerdict(NamedTuple):
    """What the sites say of a version: the values for the stop rule, the median loss for the guard."""

    version: int
    metrics: Mapping[str, float]
    loss: float | None
    said_by: str


class SiteEvaluations:
    """Gathers the sites' reports until enough have come."""

    def __init__(self, settings: StopSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._quorum: SiteQuorum[SiteReport] = SiteQuorum(settings.quorum, settings.quorum_seconds)
        self._number = -1
        self._told_late: set[int] = set()
        self.roster = NOBODY

    def take(self, event: Event, version: int, offset: int) -> None:
        """Take in a client's evaluation that has no fault."""
        site = site_of(event) or ""
        self._quorum.take(
            version, site, site_report(event.data), offset, self._clock.monotonic(), self.roster.takes_part
        )

    def verdicts(self, number: int) -> list[SiteVerdict]:
        """The versions that have come to count; `number` is the present one."""
        if number != self._number:
            self._number = number
            self._quorum.look_again()
        found = self._quorum.counted(self.roster.takes_part, self.roster.taking_part(), self._clock.monotonic())
        self._say_late()
        return [self._verdict(version, reports) for version, reports in found]

    @property
    def oldest_offset(self) -> int | None:
        """See `SiteQuorum.oldest_offset`."""
        return self._quorum.oldest_offset

    def dump(self) -> list[int]:
        """See `SiteQuorum.dump`."""
        return self._quorum.dump()

    def load(self, dumped: object) -> None:
        """See `SiteQuorum.load`."""
        self._quorum.load(dumped)

    def _verdict(self, version: int, reports: Mapping[str, SiteReport]) -> SiteVerdict:
        values, of_sites = {}, self._settings.of_sites
        for name in metric_names(reports, MOST_METRICS):
            told = [report.metrics[name] for report in reports.values() if name in report.metrics]
            if 2 * len(told) >= len(reports):  # one site's own metric is not the federation's
                values[name] = self._value(reports, name, told)
        said_by = f"the {of_sites} of {len(reports)} sites" if len(reports) > 1 else f"by {next(iter(reports))} alone"
        logger.info("version %d, %s: %s", version, said_by, ", ".join(f"{k} {v:.4f}" for k, v in values.items()))
        loss = _median([report.metrics["loss"] for report in reports.values()]) if "loss" in values else None
        return SiteVerdict(version, values, loss, said_by)

    def _value(self, reports: Mapping[str, SiteReport], name: str, told: list[float | None]) -> float:
        said = together(reports, name)
        if said is None or said.not_finite > said.sites:
            return math.nan
        if self._settings.of_sites == "worst":
            return (min if self._settings.mode == "max" else max)(value for value in told if value is not None)
        return said.mean if self._settings.of_sites == "mean" else said.median

    def _say_late(self) -> None:
        late = dict(self._quorum.waiting(self.roster.takes_part))
        for version in late.keys() - self._told_late:
            logger.warning(
                "version %d does not count for the stop rule: %d sites that take part have reported on it within "
                "stop.quorum_seconds; lower stop.quorum, or let clients measure more versions (client.evaluate_every)",
                version,
                late[version],
            )
        self._told_late = set(late)


def _median(told: list[float | None]) -> float:
    """A loss that is not finite is above all others. One site cannot move it far."""
    return statistics.median(math.inf if value is None else value for value in told)

"""What sites measured on their own data: each site's history, and what they say together, by version and now.

Only sites that contribute count together: a name that nobody has folded an update of is listed and left out, as
anybody can make names up. Bounded: sites, the points of each, and the reports that are held before a version's are
summed up for good.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llmos_stream.reporting.history.series import Thinned, Window
from llmos_stream.wire.evaluations import SiteReport, Together, metric_names, together

MOST_METRICS = 16
_METRICS_KEPT = 32
_POINTS = 200
_VERSIONS_HELD = 64
_REPORTS_HELD = 4000
_MODELS = 64


class SitePoint(NamedTuple):
    """What a site measured of a version."""

    version: int
    time_ms: int
    report: SiteReport


class ModelPoint(NamedTuple):
    """What a site measured of a model that a client has trained alone since version `since`, at `version`."""

    version: int
    since: int
    report: SiteReport


class VersionScores(NamedTuple):
    """What the sites say of a version together, by metric. `sites` have reported on it."""

    version: int
    sites: int
    num_examples: int
    metrics: Mapping[str, Together]


@dataclass(slots=True)
class Site:
    """A site's evaluations."""

    client_id: str
    last: SitePoint
    count: int = 0
    points: Thinned[SitePoint] = field(default_factory=lambda: Thinned(_POINTS))
    seen: Window = field(default_factory=lambda: Window(1024))

    models: dict[str, ModelPoint] = field(default_factory=dict)
    """The newest, by the client that trained the model."""

    def in_order(self) -> list[SitePoint]:
        """Its points by version."""
        return sorted(self.points, key=lambda point: point.version)


class Sites:
    """The fold of the sites' evaluations. `contributes` says whether a site counts; it may say so later."""

    def __init__(self, contributes: Callable[[str], bool], *, limit: int, site_limit: int) -> None:
        self._contributes = contributes
        self._limit = site_limit
        self._sites: dict[str, Site] = {}
        self._held: dict[int, dict[str, SiteReport]] = {}
        self._reports = 0
        self._summed_up: Thinned[VersionScores] = Thinned(limit)
        self._summed_to = -1
        """Up to this version all is summed up."""
        self._scored: dict[int | None, VersionScores] = {}  # of what is held; None: now

    def __iter__(self) -> Iterator[Site]:
        return iter(self._sites.values())

    def __len__(self) -> int:
        return len(self._sites)

    def get(self, client_id: str) -> Site | None:
        return self._sites.get(client_id)

    def counts(self, client_id: str) -> bool:
        """Whether what this site says counts together with others'."""
        return self._contributes(client_id)

    def add(self, client_id: str, version: int, time_ms: int, report: SiteReport) -> None:
        """Take in a report; a site's first on a version counts."""
        names = metric_names({client_id: report}, _METRICS_KEPT)
        point = SitePoint(version, time_ms, report._replace(metrics={name: report.metrics[name] for name in names}))
        site = self._sites.get(client_id)
        if site is None:
            if len(self._sites) >= self._limit and not self._make_room(client_id):
                return
            site = self._sites[client_id] = Site(client_id, point)
        if not site.seen.is_new(version):
            return
        site.count += 1
        site.points.add(point)
        if version >= site.last.version:
            site.last = point
        self._scored.pop(version, None)
        self._scored.pop(None, None)
        if version > self._summed_to:
            self._held.setdefault(version, {})[client_id] = point.report
            self._reports += 1
            while len(self._held) > _VERSIONS_HELD or self._reports > _REPORTS_HELD:
                self._sum_up(min(self._held))

    def look_again(self) -> None:
        """Others contribute now than before."""
        self._scored.clear()

    def add_model(self, client_id: str, trainer: str, point: ModelPoint) -> None:
        """Take in what a site, which measures versions too, measured of a model that was trained alone."""
        site = self._sites.get(client_id)
        if site is None or (trainer not in site.models and len(site.models) >= _MODELS):
            return
        known = site.models.get(trainer)
        if known is None or point.version > known.version:
            site.models[trainer] = point

    def trainers(self) -> list[str]:
        """The clients that have trained a model alone, where sites that count have measured it."""
        return sorted({one for site in self if self._contributes(site.client_id) for one in site.models})

    def versions(self) -> list[VersionScores]:
        """What the sites say together of each version, in order; of some versions only, where there are very many."""
        for version, reports in self._held.items():
            if version not in self._scored:
                self._scored[version] = self._scores(version, reports)
        known = [*self._summed_up, *(self._scored[version] for version in self._held if self._scored[version].sites)]
        return sorted(known, key=lambda scores: scores.version)

    def now(self) -> VersionScores | None:
        """What the sites say together, each of the newest version that it has measured; None where nobody says it.

        `version` is the newest of these.
        """
        if None not in self._scored:
            newest = {site.client_id: site.last.report for site in self if self._contributes(site.client_id)}
            version = max((self._sites[site].last.version for site in newest), default=0)
            self._scored[None] = self._scores(version, newest)
        return self._scored[None] if self._scored[None].sites else None

    def summary(self) -> dict[str, object]:
        """`now` in numbers, ready for JSON."""
        now = self.now()
        if now is None:
            return {"sites": 0, "version": None, "metrics": {}}
        metrics = {
            name: {
                "mean": said.mean,
                "spread": said.spread,
                "worst": said.worst,
                "worst_value": said.worst_value,
                "sites": said.sites,
                "not_finite": said.not_finite,
            }
            for name, said in now.metrics.items()
        }
        return {"sites": now.sites, "version": now.version, "num_examples": now.num_examples, "metrics": metrics}

    def _scores(self, version: int, reports: Mapping[str, SiteReport]) -> VersionScores:
        counted = {site: report for site, report in reports.items() if self._contributes(site)}
        said = {name: together(counted, name) for name in metric_names(counted, MOST_METRICS)}
        examples = sum(report.num_examples for report in counted.values())
        metrics = {name: value for name, value in said.items() if value is not None}
        return VersionScores(version, len(counted), examples, metrics)

    def _sum_up(self, version: int) -> None:
        reports = self._held.pop(version)
        self._scored.pop(version, None)
        self._reports -= len(reports)
        self._summed_to = max(version, self._summed_to)
        if (scores := self._scores(version, reports)).sites:
            self._summed_up.add(scores)

    def _make_room(self, client_id: str) -> bool:
        """Whether a site that contributes has taken the place of a name that does not."""
        if not self._contributes(client_id):
            return False
        stranger = next((site for site in self._sites if not self._contributes(site)), None)
        if stranger is not None:
            del self._sites[stranger]
        return stranger is not None

"""What sites measured of the newest version that each has measured, as gauges: bounded in sites and in metrics."""

from collections import OrderedDict

from prometheus_client import CollectorRegistry, Gauge

from llmos_stream.types import Event
from llmos_stream.wire.events import metrics, text, whole

_MAX_SITES = 1000  # each is several series
_MAX_METRICS = 16
_FIRST = ("accuracy", "loss")
_MAX_CHARACTERS = 128


class SiteMetrics:
    """Gauges by client. Above the highest number of sites the one that has been silent for longest is forgotten."""

    def __init__(self, prefix: str, registry: CollectorRegistry, max_sites: int = _MAX_SITES) -> None:
        self._max_sites = max_sites
        self._sites: OrderedDict[str, int] = OrderedDict()  # the newest version measured
        self._names: dict[str, None] = dict.fromkeys(_FIRST)
        self._told: dict[str, set[str]] = {}
        self._value = Gauge(
            f"{prefix}_site_evaluation",
            "What a client measured on its own validation data, by metric.",
            ("client_id", "metric"),
            registry=registry,
        )
        self._version = Gauge(
            f"{prefix}_site_evaluated_version",
            "Number of the newest version that a client has measured.",
            ("client_id",),
            registry=registry,
        )
        self._examples = Gauge(
            f"{prefix}_site_validation_examples",
            "Examples of a client's validation data.",
            ("client_id",),
            registry=registry,
        )

    def observe(self, event: Event) -> None:
        """Take in a client's evaluation."""
        site, version = text(event.data.get("client_id")), whole(event.data.get("version"))
        if site is None or version is None or version < self._sites.get(site := site[:_MAX_CHARACTERS], 0):
            return
        self._sites[site] = version
        self._sites.move_to_end(site)
        self._version.labels(site).set(version)
        self._examples.labels(site).set(whole(event.data.get("num_examples")) or 0)
        found = metrics(event.data.get("metrics")) or {}
        told = self._told.setdefault(site, set())
        for name in told - found.keys():  # what is not finite now must not stand as it was before
            self._value.remove(site, name[:_MAX_CHARACTERS])
        told.intersection_update(found)
        for name in sorted(found, key=lambda name: name not in _FIRST):
            if name in self._names or len(self._names) < _MAX_METRICS:
                self._names[name] = None
                told.add(name)
                self._value.labels(site, name[:_MAX_CHARACTERS]).set(found[name])
        if len(self._sites) > self._max_sites:
            self.forget(next(iter(self._sites)))

    def forget(self, site: str) -> None:
        """Export nothing of this site any more."""
        if self._sites.pop(site, None) is not None:
            self._version.remove(site)
            self._examples.remove(site)
            for name in self._told.pop(site, set()):
                self._value.remove(site, name[:_MAX_CHARACTERS])

"""The events of a federation as Prometheus metrics.

A role counts the events that it writes, under `llmos_`; the monitor counts everybody's, under `llmos_federation_`.
Names end with their units, as Prometheus asks. Labels come from closed sets: any other value counts as `other`.
"""

from collections.abc import Mapping
from math import inf

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

from llmos_stream.errors import Reason
from llmos_stream.telemetry.site_metrics import SiteMetrics
from llmos_stream.types import CodecId, Event, EventKind, Role
from llmos_stream.wire.evaluations import site_of, trainer_of
from llmos_stream.wire.events import amount, metrics, text

_STALENESS = (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89)
_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)
_MAX_METRICS = 32  # an evaluator chooses the names, and each is a series
_OTHER = "other"
_VERDICTS = ("sent", "folded", "duplicate", "rejected")
_REASONS = frozenset(map(str, Reason))
_CODECS = frozenset(codec.label for codec in CodecId)


class EventMetrics:
    """Counts events. `prefix` begins every name."""

    def __init__(self, prefix: str, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"{prefix}_{name}", text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"{prefix}_{name}", text, labels, registry=registry)

        def histogram(name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"{prefix}_{name}", text, buckets=buckets, registry=registry)

        self._joins = counter("client_joins", "Clients that joined.")
        self._leaves = counter("client_leaves", "Clients that left and said so.")
        self._updates = counter("updates", "Updates by verdict: sent, folded, duplicate, rejected.", "verdict")
        self._rejected = counter("updates_rejected", "Rejected updates by reason.", "reason")
        self._quarantined = counter("quarantined_updates", "Updates in quarantine, by reason.", "reason")
        self._raw = counter("update_raw_bytes", "Bytes that the updates sent would have as float32, by codec.", "codec")
        self._sent = counter("update_sent_bytes", "Bytes of the updates sent, by codec.", "codec")
        self._training = histogram("update_train_seconds", "Training behind one update.", _SECONDS)
        self._encoding = histogram("update_encode_seconds", "Encoding of one update.", _SECONDS)
        self._staleness = histogram("update_staleness", "Versions between base and folding.", _STALENESS)
        self._versions = counter("versions", "Versions published.")
        self._version = gauge("version", "Number of the newest version.")
        self._version_bytes = counter("version_bytes", "Bytes of the versions published.")
        self._version_raw = counter("version_raw_bytes", "Bytes that these versions would have in full, as float32.")
        self._folding = histogram("fold_seconds", "Folding of one version's updates.", _SECONDS)
        self._lag = gauge("lag_records", "Records of updates that the aggregator has yet to read.")
        self._pace = gauge("pace_seconds", "How long the aggregator asks a client to leave between updates.")
        self._evaluated = gauge("evaluated_version", "Number of the version evaluated last.")
        self._evaluation = gauge("evaluation", "What the version evaluated last reached, by metric.", "metric")
        self._measuring = histogram("evaluation_seconds", "Evaluation of one version.", _SECONDS)
        self._sites = SiteMetrics(prefix, registry)
        self._collapsed = gauge("model_collapsed", "1 from a collapse of the model until a newer version is good.")
        self._limit: float | None = None
        self._collapsed_version = 0.0
        self._finished = gauge("run_finished", "1 once the run has ended.")
        self._metrics: set[str] = set()
        # Each label is there from the start, so that a rate shows its first event.
        for verdict in _VERDICTS:
            self._updates.labels(verdict)
        for reason in (*sorted(_REASONS), _OTHER):
            self._rejected.labels(reason)
            self._quarantined.labels(reason)

    def observe(self, event: Event) -> None:
        """Count one event, without fields that it lacks or that are of another form (see `wire.events.FIELDS`)."""
        data = event.data
        match event.kind:
            case EventKind.CLIENT_JOINED:
                self._joins.inc()
            case EventKind.CLIENT_LEFT:
                self._leaves.inc()
            case EventKind.UPDATE_SENT:
                self._updates.labels("sent").inc()
                codec = _known(data.get("codec"), _CODECS)
                self._raw.labels(codec).inc(amount(data.get("raw_bytes")) or 0)
                self._sent.labels(codec).inc(amount(data.get("sent_bytes")) or 0)
                _observe(self._training, data.get("train_seconds"))
                _observe(self._encoding, data.get("encode_seconds"))
            case EventKind.UPDATE_FOLDED:
                self._updates.labels("folded").inc()
                _observe(self._staleness, data.get("staleness"))
            case EventKind.UPDATE_DUPLICATE:
                self._updates.labels("duplicate").inc()
            case EventKind.UPDATE_REJECTED:
                self._updates.labels("rejected").inc()
                reason = _known(data.get("reason"), _REASONS)
                self._rejected.labels(reason).inc()
                if event.role == Role.AGGREGATOR:  # a client never sent what it refused itself
                    self._quarantined.labels(reason).inc()
            case EventKind.VERSION_PUBLISHED:
                self._published(data)
            case EventKind.EVALUATION:
                self._measured(event)
            case EventKind.MODEL_COLLAPSED:
                self._collapsed.set(1)
                self._limit = amount(data.get("limit"))
                self._collapsed_version = amount(data.get("version")) or 0
            case EventKind.RUN_FINISHED:
                self._finished.set(1)
            case EventKind.RUN_RESUMED:
                self._finished.set(0)

    def set_lag(self, records: int) -> None:
        """Export the number of unread records of updates, also while no version comes."""
        self._lag.set(records)

    def _published(self, data: Mapping[str, object]) -> None:
        self._versions.inc()
        self._version_bytes.inc(amount(data.get("payload_bytes")) or 0)
        self._version_raw.inc(amount(data.get("raw_bytes")) or 0)
        _observe(self._folding, data.get("fold_seconds"))
        for gauge, name in ((self._version, "version"), (self._lag, "lag"), (self._pace, "pace_seconds")):
            if (value := amount(data.get(name))) is not None:
                gauge.set(value)

    def _measured(self, event: Event) -> None:
        data = event.data
        _observe(self._measuring, data.get("seconds"))
        if site_of(event) is not None:
            if trainer_of(event) is None:
                self._sites.observe(event)
            return
        if (version := amount(data.get("version"))) is not None:
            self._evaluated.set(version)
        found = metrics(data.get("metrics")) or {}
        if "loss" in found and (version or 0) > self._collapsed_version and found["loss"] <= (self._limit or inf):
            self._collapsed.set(0)
        for name, value in found.items():
            if name in self._metrics or len(self._metrics) < _MAX_METRICS:
                self._metrics.add(name)
                self._evaluation.labels(name[:64]).set(value)


def _known(value: object, known: frozenset[str]) -> str:
    label = text(value)
    return label if label in known else _OTHER


def _observe(histogram: Histogram, value: object) -> None:
    if (number := amount(value)) is not None:
        histogram.observe(number)


OWN = EventMetrics("llmos")
"""The events that this process wrote."""

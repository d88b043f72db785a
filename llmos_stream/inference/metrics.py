"""Prometheus metrics of the inference service."""

from collections.abc import Callable, Iterable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
_EXAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
_NO_VERSION = "none"
_STATUSES = ("200", "404", "422", "500", "503")  # there from the start, so that a rate shows the first error


class InferenceMetrics:
    """Counts answers. The label `version` has few values: the loaded versions and `none`."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._requests = Counter(
            "llmos_inference_requests",
            "Predictions asked for, by version that answered and HTTP status.",
            ("version", "status"),
            registry=registry,
        )
        # Series by version come and go, and a rate loses their first and last counts: this one stays.
        self._answers = Counter(
            "llmos_inference_answers", "Predictions asked for, by HTTP status.", ("status",), registry=registry
        )
        for status in _STATUSES:
            self._answers.labels(status)
        self._seconds = Histogram(
            "llmos_inference_request_seconds", "From request to answer.", buckets=_SECONDS, registry=registry
        )
        self._examples = Histogram(
            "llmos_inference_batch_examples", "Examples in one forward pass.", buckets=_EXAMPLES, registry=registry
        )
        self._waiting = Gauge("llmos_inference_waiting_examples", "Examples that wait for a pass.", registry=registry)
        self._version = Gauge("llmos_inference_version", "Number of the version that serves.", registry=registry)
        self._newest = Gauge("llmos_inference_newest_version", "Number of the newest version held.", registry=registry)
        self._swaps = Counter("llmos_inference_swaps", "Times that another version came to serve.", registry=registry)
        self._serving: int | None = None
        self._seen: set[tuple[str, str]] = set()

    def watch_waiting(self, waiting: Callable[[], float]) -> None:
        """Export the number of waiting examples, read at each scrape."""
        self._waiting.set_function(waiting)

    def batch(self, examples: int) -> None:
        """Count a forward pass."""
        self._examples.observe(examples)

    def answered(self, version: int | None, status: int, seconds: float | None) -> None:
        """Count an answer. `seconds` is None where its length says how long it takes."""
        labels = (_NO_VERSION if version is None else str(version), str(status))
        self._seen.add(labels)
        self._requests.labels(*labels).inc()
        self._answers.labels(str(status)).inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def show_pool(self, loaded: Iterable[int], serving: int | None, newest: int | None) -> None:
        """Export what serves, and drop the series of versions that are no longer loaded."""
        known = {_NO_VERSION, *map(str, loaded)}
        for labels in [labels for labels in self._seen if labels[0] not in known]:
            self._seen.remove(labels)
            self._requests.remove(*labels)
        if serving is not None:
            self._version.set(serving)
            self._swaps.inc(serving != self._serving)
            self._serving = serving
        if newest is not None:
            self._newest.set(newest)

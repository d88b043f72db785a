"""Prometheus metrics of generation, beside those of the inference service."""

from collections.abc import Callable

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_KINDS = ("prompt", "answer")


class GenerationMetrics:
    """Counts tokens; a rate over `llmos_generation_tokens_total` is tokens/s."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._tokens = Counter(
            "llmos_generation_tokens", "Tokens read (prompt) and made (answer).", ("kind",), registry=registry
        )
        for kind in _KINDS:
            self._tokens.labels(kind)
        self._first = Histogram(
            "llmos_generation_first_token_seconds",
            "From a request to the first token of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._whole = Histogram(
            "llmos_generation_request_seconds",
            "From a request to the end of its answer.",
            buckets=_SECONDS,
            registry=registry,
        )
        self._waiting = Gauge("llmos_generation_waiting_requests", "Requests that wait for a place.", registry=registry)
        self._running = Gauge(
            "llmos_generation_running_requests", "Requests that are being answered.", registry=registry
        )

    def watch(self, waiting: Callable[[], float], running: Callable[[], float]) -> None:
        """Export how many requests wait and run, read at each scrape."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)

    def begun(self, prompt: int, seconds: float) -> None:
        """Count a prompt of so many tokens, whose first token came after so long."""
        self._tokens.labels("prompt").inc(prompt)
        self._first.observe(seconds)

    def ended(self, seconds: float) -> None:
        """Note how long an answer took from its request to its end."""
        self._whole.observe(seconds)

    def made(self, tokens: int) -> None:
        """Count tokens of answers."""
        self._tokens.labels("answer").inc(tokens)

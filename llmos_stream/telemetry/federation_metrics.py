"""What the monitor exports: counts of everybody's events, when each client was last heard, and what it measured."""

from collections import OrderedDict

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from llmos_stream.telemetry.event_metrics import EventMetrics
from llmos_stream.types import Event, EventKind

_MAX_CLIENTS = 1000  # each is a series
_MAX_CHARACTERS = 128


class FederationMetrics(EventMetrics):
    """Counts events of the whole federation under `llmos_federation_`.

    Clients are labels here, so their number is bounded: above `max_clients` the longest silent one is forgotten.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY, max_clients: int = _MAX_CLIENTS) -> None:
        super().__init__("llmos_federation", registry)
        self._max_clients = max_clients
        self._heard: OrderedDict[str, float] = OrderedDict()  # longest silent first
        self._clients = Gauge(
            "llmos_federation_clients", "Clients that were heard and have not left.", registry=registry
        )
        self._last = Gauge(
            "llmos_federation_client_heard_timestamp_seconds",
            "When a client that has not left was heard last, by its own clock.",
            ("client_id",),
            registry=registry,
        )

    def observe(self, event: Event) -> None:
        super().observe(event)
        client = event.data.get("client_id")
        if not isinstance(client, str):
            return
        client = client[:_MAX_CHARACTERS]
        if event.kind is EventKind.CLIENT_LEFT:
            self._forget(client)
        elif event.kind in (EventKind.CLIENT_JOINED, EventKind.UPDATE_SENT):
            self._hear(client, event.time_ms / 1000)
        self._clients.set(len(self._heard))

    def _hear(self, client: str, when: float) -> None:
        self._heard[client] = when
        self._heard.move_to_end(client)
        self._last.labels(client).set(when)
        if len(self._heard) > self._max_clients:
            self._forget(next(iter(self._heard)))

    def _forget(self, client: str) -> None:
        if self._heard.pop(client, None) is not None:
            self._last.remove(client)
        self._sites.forget(client)

"""A run as series for experiment trackers: each value has a name, a version as its step, and the time of the log.

Pure, and a function of the events in the order of the log, so that who follows a run and who reads it a week later get
the same points. No name has two values at one step: the first counts.

    version/NAME        what is known of each version when it is published
    total/NAME          what has come together by then
    evaluation/METRIC   what an evaluator measured of the version
    site/ID/METRIC      what a client measured of the version on its own validation data
    client/ID/NAME      updates, refused, staleness: by the version that the client's update became part of;
                        its own metrics (loss, accuracy, norm, ...), train_seconds, sent_bytes: by that trained on
"""

import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llmos_stream.reporting.history.clients import NAME_LENGTH
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.series import Mean, Window
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.evaluations import site_of, trainer_of
from llmos_stream.wire.events import amount, metrics, text, whole

CLIENT_LIMIT = 50
_METRICS = 64
_SENT_KEPT = 4096
_VERSIONS_KEPT = 64
_UNUSUAL = re.compile(r"[^A-Za-z0-9_. :/-]")
"""What the name of a series cannot hold everywhere."""
_OF_VERSIONS = ("contributions", "payload_bytes", "fold_seconds", "pace_seconds", "lag", "mean_staleness")


class Point(NamedTuple):
    """A value of a series."""

    name: str
    step: int
    time_ms: int
    value: float


@dataclass(slots=True)
class _Folded:
    """What the updates of one version come to."""

    examples: int = 0
    most_stale: int = 0
    clipped: int = 0
    loss: Mean = field(default_factory=Mean)
    norm: Mean = field(default_factory=Mean)
    clients: dict[str, int | None] = field(default_factory=dict)
    """The staleness of each client's last one."""


class RunPoints:
    """The fold. Clients after the first `client_limit` have no series of their own, nor do metrics after 64 names."""

    def __init__(self, client_limit: int = CLIENT_LIMIT) -> None:
        self.history = History()
        self._client_limit = client_limit
        self._clients: dict[str, Window] = {}
        self._sites: dict[str, Window] = {}  # of versions measured
        self._refused: dict[str, int] = {}
        self._metrics: dict[str, None] = {}
        self._sent: OrderedDict[tuple[str, int], Mapping[str, float]] = OrderedDict()
        self._folded: OrderedDict[int, _Folded] = OrderedDict()

    def take(self, event: Event) -> list[Point]:
        """Fold one event in, and return the points that it makes. Raises Rejected as `History.add` does."""
        before = self._counts()
        self.history.add(event)
        if site_of(event) is not None:
            return self._site_measured(event)
        if self._counts() == before:  # a repeat, or nothing that has a series
            return []
        time_ms, data = event.time_ms, event.data
        match event.kind:
            case EventKind.UPDATE_SENT:
                return [Point(*item, time_ms, value) for item, value in self._update_sent(data)]
            case EventKind.UPDATE_FOLDED:
                self._update_folded(data)
            case EventKind.VERSION_PUBLISHED:
                step = whole(data["version"]) or 0
                values = {**self._version(step, time_ms, data), **self._totals(), **self._client_values(step)}
                return [Point(name, step, time_ms, value) for name, value in values.items()]
            case EventKind.EVALUATION:
                step, found = whole(data["version"]) or 0, self._named(data.get("metrics"))
                return [Point(f"evaluation/{name}", step, time_ms, value) for name, value in found.items()]
            case _:
                pass
        return []

    def _counts(self) -> tuple[int, ...]:
        history = self.history
        return history.sent, history.folded, history.versions.total, history.scores.points.total

    def _site_measured(self, event: Event) -> list[Point]:
        """By the order of their own topic alone, which is the same live and afterwards."""
        client_id, step = self._id(event.data), whole(event.data["version"]) or 0
        if trainer_of(event) is not None or (client_id not in self._sites and len(self._sites) >= self._client_limit):
            return []
        if not self._sites.setdefault(client_id, Window()).is_new(step):
            return []
        found = self._named(event.data.get("metrics"))
        return [Point(f"site/{client_id}/{name}", step, event.time_ms, value) for name, value in found.items()]

    def _update_sent(self, data: Mapping[str, object]) -> Iterator[tuple[tuple[str, int], float]]:
        client_id, base, sequence = self._id(data), whole(data.get("base_version")), whole(data["sequence"]) or 0
        found = self._named(data.get("metrics"))
        self._sent[client_id, sequence] = found
        if len(self._sent) > _SENT_KEPT:
            self._sent.popitem(last=False)
        if base is None or not self._has_series(client_id) or not self._clients[client_id].is_new(base):
            return
        for name in ("train_seconds", "sent_bytes"):
            if (value := amount(data.get(name))) is not None:
                found = {**found, name: value}
        for name, value in found.items():
            yield (f"client/{client_id}/{name}", base), value

    def _update_folded(self, data: Mapping[str, object]) -> None:
        client_id, version = self._id(data), whole(data.get("version"))
        sent = self._sent.pop((client_id, whole(data["sequence"]) or 0), {})
        if version is None:
            return
        folded = self._folded.setdefault(version, _Folded())
        if len(self._folded) > _VERSIONS_KEPT:
            self._folded.popitem(last=False)
        examples, staleness, clip = whole(data.get("num_examples")), whole(data.get("staleness")), data.get("clip")
        folded.examples += examples or 0
        folded.most_stale = max(folded.most_stale, staleness or 0)
        folded.clipped += (amount(clip) or 0.0) < 1 and clip is not None
        folded.norm.add(sent.get("norm"))
        if "loss" in sent and examples:
            folded.loss.total += examples * sent["loss"]
            folded.loss.count += examples
        folded.clients[client_id] = staleness

    def _version(self, step: int, time_ms: int, data: Mapping[str, object]) -> dict[str, float]:
        folded, start = self._folded.get(step), self.history.start_ms
        known = {name: amount(data.get(name)) for name in _OF_VERSIONS}
        if start is not None:
            known["seconds"] = max(0, time_ms - start) / 1000
        if folded is not None:
            known |= {"examples": folded.examples, "max_staleness": folded.most_stale, "clipped": folded.clipped}
            known |= {"mean_norm": folded.norm.value, "train_loss": folded.loss.value}
        return {f"version/{name}": float(value) for name, value in known.items() if value is not None}

    def _totals(self) -> dict[str, float]:
        history = self.history
        totals = {
            "updates": history.folded,
            "refused": history.rejections.total,
            "duplicates": history.duplicates,
            "sent_bytes": history.traffic.sent,
            "published_bytes": history.traffic.broadcast,
        }
        return {f"total/{name}": float(value) for name, value in totals.items()}

    def _client_values(self, step: int) -> dict[str, float]:
        folded = self._folded.pop(step, _Folded())
        found: dict[str, float] = {}
        for client_id, staleness in folded.clients.items():
            client = self.history.clients.get(client_id)
            if client is not None and self._has_series(client_id):
                found[f"client/{client_id}/updates"] = client.folded
                if staleness is not None:
                    found[f"client/{client_id}/staleness"] = staleness
        for client_id in self._clients:
            client = self.history.clients.get(client_id)
            if client is not None and client.rejected != self._refused.get(client_id, 0):
                self._refused[client_id] = client.rejected
                found[f"client/{client_id}/refused"] = client.rejected
        return found

    def _named(self, value: object) -> dict[str, float]:
        """The metrics among them that have a series."""
        found = {}
        for given, number in (metrics(value) or {}).items():
            name = _UNUSUAL.sub("_", given)
            if name in self._metrics or len(self._metrics) < _METRICS:
                self._metrics[name] = None
                found[name] = number
        return found

    def _has_series(self, client_id: str) -> bool:
        if client_id not in self._clients and len(self._clients) < self._client_limit:
            self._clients[client_id] = Window()
        return client_id in self._clients

    def _id(self, data: Mapping[str, object]) -> str:
        return (text(data["client_id"]) or "")[:NAME_LENGTH]

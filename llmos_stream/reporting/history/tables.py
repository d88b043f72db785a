"""Everything that events say, as rows: for notebooks, where a run is looked at as tables. Times are in UTC."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

from llmos_stream.reporting.history.fold import History
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.events import metrics

Row = dict[str, object]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SENT = ("base_version", "num_examples", "train_seconds", "encode_seconds", "sent_bytes", "raw_bytes")
_FOLDED = ("version", "staleness", "weight", "clip", "num_examples")


class Tables:
    """The fold, which is as large as the log: `History` is the one that is bounded."""

    def __init__(self) -> None:
        self.history = History(client_limit=100_000)
        self.events: list[Row] = []
        self._versions: dict[object, Row] = {}
        self._evaluations: dict[object, Row] = {}
        self._site_evaluations: dict[object, Row] = {}
        self._updates: dict[tuple[object, object], Row] = {}

    def add(self, event: Event) -> None:
        """Fold one event in. Raises Rejected as `History.add` does."""
        self.history.add(event)
        time, data = _time(event.time_ms), event.data
        self.events.append({"time": time, "kind": str(event.kind), "role": event.role, **data})
        match event.kind:
            case EventKind.VERSION_PUBLISHED:
                self._versions.setdefault(data["version"], {"version": data["version"], "time": time, **data})
            case EventKind.EVALUATION:
                found = {name: value for name, value in data.items() if name != "metrics"}
                row = {"version": data["version"], "time": time, **found, **(metrics(data["metrics"]) or {})}
                site = data.get("client_id")
                kept = self._evaluations if site is None else self._site_evaluations
                kept.setdefault((site, data.get("trained_by"), data["version"]), row)
            case EventKind.UPDATE_SENT:
                told = {name: data.get(name) for name in _SENT}
                self._update(data, "sent", {**(metrics(data.get("metrics")) or {}), **told, "sent": time})
            case EventKind.UPDATE_FOLDED:
                self._update(data, "folded", {name: data.get(name) for name in _FOLDED} | {"folded": time})
            case EventKind.UPDATE_REJECTED if data.get("client_id") is not None and data.get("sequence") is not None:
                self._update(data, "refused", {"reason": data.get("reason"), "detail": data.get("detail")})
            case _:
                pass

    @property
    def versions(self) -> list[Row]:
        """A row for each version, by number."""
        return sorted(self._versions.values(), key=_version)

    @property
    def evaluations(self) -> list[Row]:
        """A row for each version that an evaluator measured, with a column for each metric."""
        return sorted(self._evaluations.values(), key=_version)

    @property
    def site_evaluations(self) -> list[Row]:
        """A row for each model that a site measured on its own data: versions, and what was trained alone."""
        return sorted(self._site_evaluations.values(), key=_version)

    @property
    def updates(self) -> list[Row]:
        """A row for each update: what its client said of it, and what became of it."""
        return list(self._updates.values())

    @property
    def clients(self) -> list[Row]:
        """A row for each client, the largest share first."""
        return [
            {
                "client_id": row.client.client_id,
                "state": str(row.state),
                "num_examples": row.client.num_examples,
                "sent": row.client.sent,
                "folded": row.client.folded,
                "refused": row.client.rejected,
                "duplicates": row.client.duplicates,
                "share": row.share,
                "mean_staleness": row.client.staleness.value,
                "mean_train_seconds": row.client.train_seconds.value,
                "sent_bytes": row.client.bytes_sent,
                "first_seen": _time(row.client.first_seen_ms),
                "last_seen": _time(row.client.last_seen_ms),
            }
            for row in self.history.rows()
        ]

    def _update(self, data: Mapping[str, object], verdict: str, told: Mapping[str, object]) -> None:
        client_id, sequence = data["client_id"], data["sequence"]
        new: Row = {"client_id": client_id, "sequence": sequence, "verdict": verdict}
        row = self._updates.setdefault((client_id, sequence), new)
        if row["verdict"] == "folded" and verdict == "refused":
            return  # a repeat was
        if verdict != "sent":  # the client's event may come after the aggregator's
            row["verdict"] = verdict
        row.update({name: value for name, value in told.items() if value is not None})


def _time(time_ms: int | None) -> datetime | None:
    return None if time_ms is None else _EPOCH + timedelta(milliseconds=time_ms)


def _version(row: Row) -> int:
    version = row["version"]
    return version if isinstance(version, int) else -1

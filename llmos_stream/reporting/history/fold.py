"""What happened in a federation: a bounded, pure and idempotent fold of its events.

The state is a function of the events alone, which may come more than once and out of order. A second event of the same
identity changes nothing. The identity is `(client_id, sequence)` for updates sent and folded, `(partition, offset)` for
duplicates and rejections, the version for versions and evaluations, the time for joins and leaves. The number of known
identities is bounded (see `series.Window`, `clients.ClientTable`), and so are the points for charts (5000 of each kind,
evenly thinned) and the clients with a row of their own (1000).
"""

from collections.abc import Callable, Mapping

from llmos_stream.errors import Reason, Rejected
from llmos_stream.reporting.history.clients import NAME_LENGTH, ClientStats, ClientStatus, ClientTable
from llmos_stream.reporting.history.records import (
    ClientRow,
    CollapsePoint,
    Finish,
    RejectedUpdate,
    UpdatePoint,
    VersionPoint,
)
from llmos_stream.reporting.history.series import Bins, Mean, Rate, Thinned, TimeRange, Window, Windows
from llmos_stream.reporting.history.sites import ModelPoint, Sites
from llmos_stream.reporting.history.totals import Rejections, Scores, Tokens, Traffic
from llmos_stream.types import TOKENS, Event, EventKind
from llmos_stream.wire.evaluations import site_report
from llmos_stream.wire.events import amount, fault_of, metrics, text, whole

_DETAIL_LENGTH = 300
_CLIENT_KINDS = frozenset({EventKind.CLIENT_JOINED, EventKind.CLIENT_LEFT, EventKind.UPDATE_SENT})


class History:
    """The fold. `limit` bounds the points of each series, `client_limit` the clients with a row."""

    def __init__(self, *, limit: int = 5000, client_limit: int = 1000) -> None:
        self.contributions = Bins()
        self.clients = ClientTable(client_limit, lambda client_id: self.contributions.rename(client_id, None))
        self.updates: Thinned[UpdatePoint] = Thinned(limit)
        self.versions: Thinned[VersionPoint] = Thinned(limit)
        self.scores = Scores(limit)
        self.sites = Sites(self._contributes, limit=min(limit, 1000), site_limit=client_limit)
        self.traffic = Traffic(limit)
        self.tokens = Tokens()
        self.lag: int | None = None
        self.rejections = Rejections()
        self.rate = Rate()
        self.staleness = Mean()
        self._finish: Finish | None = None
        self._resumed_ms = -1
        self.version: int | None = None
        """The newest global version in the events."""
        self._collapse: CollapsePoint | None = None
        self.gone_back: tuple[int, int] | None = None
        """The newest version that went back to an older one, and that one."""
        self.version_count = 0
        self.folded = 0
        self.sent = 0
        self.duplicates = 0
        self.clipped = 0
        self._weight = 0.0
        self._time_range = TimeRange()
        self._seen_versions = Window(4096)
        self._seen_places = Windows()
        self._handlers: Mapping[EventKind, Callable[[int, Mapping[str, object]], None]] = {
            EventKind.CLIENT_JOINED: self._joined,
            EventKind.CLIENT_LEFT: self._left,
            EventKind.UPDATE_SENT: self._update_sent,
            EventKind.UPDATE_FOLDED: self._update_folded,
            EventKind.UPDATE_DUPLICATE: self._update_duplicate,
            EventKind.UPDATE_REJECTED: self._update_rejected,
            EventKind.VERSION_PUBLISHED: self._version_published,
            EventKind.EVALUATION: self._evaluation,
            EventKind.MODEL_COLLAPSED: self._model_collapsed,
            EventKind.RUN_FINISHED: self._run_finished,
            EventKind.RUN_RESUMED: self._run_resumed,
        }

    def add(self, event: Event) -> None:
        """Fold one event in.

        Raises:
            Rejected: It is not of the closed table; nothing was changed.
        """
        if fault := fault_of(event):
            raise Rejected(Reason.MALFORMED, fault)
        self._time_range.add(event.time_ms, by_server=event.kind not in _CLIENT_KINDS and event.role != "client")
        self._handlers[event.kind](event.time_ms, event.data)

    @property
    def finish(self) -> Finish | None:
        """The newest end of the run; None before, and after the run has gone on."""
        return self._finish if self._finish is not None and self._finish.time_ms > self._resumed_ms else None

    @property
    def start_ms(self) -> int | None:
        """Time of the first event."""
        return self._time_range.start_ms

    @property
    def end_ms(self) -> int | None:
        """Time of the last event; clients leave after the run finished."""
        return self._time_range.end_ms

    @property
    def seconds(self) -> float:
        """From the first event to the end of the run, or else to the last event."""
        end = self.finish.time_ms if self.finish is not None else self.end_ms
        return 0.0 if self.start_ms is None or end is None else max(0.0, (end - self.start_ms) / 1000)

    @property
    def collapse(self) -> CollapsePoint | None:
        """The newest collapse of the model; None where the newest version evaluated is a newer one, and good."""
        found, last = self._collapse, self.scores.last
        if found is None or last is None or last.version <= found.version or "loss" not in last.metrics:
            return found
        return None if found.limit is None or last.metrics["loss"] <= found.limit else found

    @property
    def updates_per_second(self) -> float | None:
        """Mean over the whole run; `rate` covers the newest seconds."""
        return self.folded / self.seconds if self.seconds else None

    def rows(self, now_ms: int | None = None) -> list[ClientRow]:
        """List the clients that have a row, the largest share first.

        Silence and status are as of `now_ms`, by default the last event's time, and after the run as of its end.
        """
        now = self.finish.time_ms if self.finish else self.end_ms if now_ms is None else now_ms
        states = self.clients.states(now or 0, finished=self.finish is not None)
        rows = [
            ClientRow(
                client,
                silent_seconds=client.silent_seconds(now or 0),
                share=client.weight / self._weight if self._weight else 0.0,
                state=states[client.client_id],
            )
            for client in self.clients
        ]
        return sorted(rows, key=lambda row: (-row.share, -row.client.folded, row.client.client_id))

    def summary(self) -> dict[str, object]:
        """Return the run in numbers, ready for JSON; None where no event says.

        `versions` leaves the initial one out, `updates` counts the folded ones, `clients` counts all that were ever
        seen, `seconds` is the length of the run.
        """
        last = self.scores.last.metrics if self.scores.last else {}
        return {
            "finished": self.finish.reason if self.finish else None,
            "final_accuracy": last.get("accuracy"),
            "best_accuracy": self.scores.best.metrics["accuracy"] if self.scores.best else None,
            "final_loss": last.get("loss"),
            "sites": self.sites.summary(),
            "version": self.version,
            "versions": self.version_count,
            "updates": self.folded,
            "updates_sent": self.sent,
            "duplicates": self.duplicates,
            "rejected": self.rejections.total,
            "rejected_by_reason": dict(self.rejections.by_reason),
            "clipped": self.clipped,
            "bytes_sent": self.traffic.sent,
            "bytes_raw": self.traffic.raw,
            "bytes_saved_percent": self.traffic.saved_percent,
            "tokens": self.tokens.trained,
            "tokens_per_second": self.tokens.per_second,
            "bytes_per_token": self.tokens.bytes_each,
            "broadcast_bytes": self.traffic.broadcast,
            "seconds": self.seconds,
            "updates_per_second": self.updates_per_second,
            "mean_staleness": self.staleness.value,
            "clients": len(self.clients),
            "clients_slow": sorted(row.client.client_id for row in self.rows() if row.state is ClientStatus.SLOW),
        }

    def _touch(self, time_ms: int, data: Mapping[str, object]) -> ClientStats:
        client = self.clients.touch(text(data["client_id"]) or "")
        client.note_seen(time_ms)
        client.note_examples(whole(data.get("num_examples")), time_ms)
        return client

    def _joined(self, time_ms: int, data: Mapping[str, object]) -> None:
        self._touch(time_ms, data).note_presence(time_ms, joined=True)

    def _left(self, time_ms: int, data: Mapping[str, object]) -> None:
        client = self._touch(time_ms, data)
        client.note_presence(time_ms, joined=False)
        self.clients.left(client)

    def _update_sent(self, time_ms: int, data: Mapping[str, object]) -> None:
        client, sequence = self._touch(time_ms, data), whole(data["sequence"]) or 0
        if not self.clients.is_new(client, client.seen_sent, "sent", text(data["client_id"]) or "", sequence):
            return
        sent, raw = whole(data.get("sent_bytes")) or 0, whole(data.get("raw_bytes")) or 0
        client.note_update(time_ms)
        client.last_sent_ms = max(time_ms, client.last_sent_ms or 0)
        client.sent += 1
        client.bytes_sent += sent
        seconds = amount(data.get("train_seconds"))
        client.train_seconds.add(seconds)
        if tokens := amount((metrics(data.get("metrics")) or {}).get(TOKENS)):
            self.tokens.add(int(tokens), seconds or 0.0, sent)
        self.sent += 1
        self.traffic.add(self._time_range.plausible(time_ms), sent=sent, raw=raw)

    def _update_folded(self, time_ms: int, data: Mapping[str, object]) -> None:
        client, client_id, sequence = self._touch(time_ms, data), text(data["client_id"]) or "", whole(data["sequence"])
        if sequence is None or not self.clients.is_new(client, client.seen_folded, "folded", client_id, sequence):
            return
        version, staleness = whole(data.get("version")), whole(data.get("staleness"))
        weight, clip = amount(data.get("weight")) or 0.0, amount(data.get("clip"))
        client.note_update(time_ms)
        client.note_folded(sequence, staleness, weight)
        if client.folded == 1:
            self.sites.look_again()
        self.folded += 1
        self.staleness.add(staleness)
        self.clipped += clip is not None and clip < 1
        self._weight += weight
        self.rate.add(time_ms)
        if version is not None:
            self.contributions.add(version, None if client is self.clients.others else client.client_id, weight)
        self.updates.add(UpdatePoint(time_ms, client_id[:NAME_LENGTH], sequence, staleness, version))

    def _update_duplicate(self, time_ms: int, data: Mapping[str, object]) -> None:
        if not self._is_new_place(EventKind.UPDATE_DUPLICATE, data):
            return
        self.duplicates += 1
        self.clients.touch(text(data["client_id"]) or "").note_repeated(time_ms)

    def _update_rejected(self, time_ms: int, data: Mapping[str, object]) -> None:
        if not self._is_new_place(EventKind.UPDATE_REJECTED, data):
            return
        client_id, reason, detail = text(data.get("client_id")), text(data["reason"]) or "", text(data.get("detail"))
        # A rejected message may name any client, so it adds no row.
        client = None if client_id is None else self.clients.get(client_id)
        if client is not None:
            client.note_refused(reason[:_DETAIL_LENGTH], time_ms)
        self.rejections.add(
            RejectedUpdate(
                time_ms,
                None if client_id is None else client_id[:NAME_LENGTH],
                whole(data.get("sequence")),
                reason[:_DETAIL_LENGTH],
                (detail or "")[:_DETAIL_LENGTH],
                whole(data.get("partition")),
                whole(data.get("offset")),
            )
        )

    def _is_new_place(self, kind: EventKind, data: Mapping[str, object]) -> bool:
        partition, offset = whole(data.get("partition")), whole(data.get("offset"))
        return partition is None or offset is None or self._seen_places.is_new((kind, partition), offset)

    def _version_published(self, time_ms: int, data: Mapping[str, object]) -> None:
        version, size = whole(data["version"]) or 0, whole(data.get("payload_bytes")) or 0
        if not self._seen_versions.is_new(version):
            return
        contributions = whole(data.get("contributions"))
        initial = not contributions and "parent" in data and data["parent"] is None
        self.version = version if self.version is None else max(version, self.version)
        self.version_count += not initial
        self.lag = whole(data.get("lag"))
        pace = amount(data.get("pace_seconds"))
        self.versions.add(VersionPoint(version, time_ms, self.lag, pace))
        self.traffic.add(time_ms, broadcast=size)
        older = whole(data.get("rolled_back_to"))
        if older is not None and (self.gone_back is None or version > self.gone_back[0]):
            self.gone_back = version, older

    def _contributes(self, client_id: str) -> bool:
        client = self.clients.get(client_id)
        return client is not None and client.folded > 0

    def _evaluation(self, time_ms: int, data: Mapping[str, object]) -> None:
        client_id, version = text(data.get("client_id")), whole(data["version"]) or 0
        if client_id is not None:
            report, trainer = site_report(data), text(data.get("trained_by"))
            if trainer is not None:
                point = ModelPoint(version, whole(data.get("since")) or 0, report)
                self.sites.add_model(client_id[:NAME_LENGTH], trainer[:NAME_LENGTH], point)
                return
            self.sites.add(client_id[:NAME_LENGTH], version, self._time_range.plausible(time_ms), report)
            return
        self.scores.add(version, time_ms, metrics(data["metrics"]) or {})

    def _model_collapsed(self, _: int, data: Mapping[str, object]) -> None:
        version = whole(data["version"]) or 0
        if self._collapse is not None and version <= self._collapse.version:
            return
        self._collapse = CollapsePoint(
            version,
            amount(data.get("loss")),
            amount(data.get("limit")),
            whole(data.get("best_version")),
            amount(data.get("best_loss")),
            (text(data.get("action")) or "")[:NAME_LENGTH],
        )

    def _run_finished(self, time_ms: int, data: Mapping[str, object]) -> None:
        if self._finish is None or time_ms > self._finish.time_ms:
            reason, detail = text(data.get("reason")) or "", text(data.get("detail")) or ""
            version = whole(data.get("version"))
            self._finish = Finish(time_ms, reason[:_DETAIL_LENGTH], detail[:_DETAIL_LENGTH], version)

    def _run_resumed(self, time_ms: int, data: Mapping[str, object]) -> None:
        self._resumed_ms = max(self._resumed_ms, time_ms)

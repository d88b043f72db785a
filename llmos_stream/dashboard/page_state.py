"""What the page shows, as plain JSON. Names from outside are on one line and of bounded length.

Keys are always this package's own words. Names and reasons from outside are values, in lists of pairs where there are
several, so that nothing from outside can name a property in the browser.
"""

from collections import Counter

from llmos_stream.broker import Topics
from llmos_stream.dashboard.charts import charts
from llmos_stream.dashboard.federation_view import FederationView
from llmos_stream.log.scan import LoggedHead
from llmos_stream.log.versions import rolled_back_to
from llmos_stream.reporting import wording
from llmos_stream.reporting.history.clients import ClientStatus
from llmos_stream.reporting.history.fold import History
from llmos_stream.reporting.history.records import ClientRow, RejectedUpdate
from llmos_stream.reporting.history.sites import MOST_METRICS
from llmos_stream.reporting.history.totals import CHARTED, Tokens
from llmos_stream.reporting.notices import notices
from llmos_stream.reporting.site_charts import SiteRow, model_table, said_metrics, said_model, site_rows
from llmos_stream.telemetry.process_metrics import passed_over
from llmos_stream.types import VersionHead

Json = dict[str, object]
_NAME = 128
_DETAIL = 300
_MAX_EXACT = 2**53 - 1


def page_state(view: FederationView, may_operate: bool) -> Json:
    """Return the whole state, as of the view's clock."""
    rows = {row.client.client_id: row for row in view.history.rows(view.now_ms)}
    # In their order of arrival, which never changes: pages are sent the differences.
    listed = [_client(rows[client.client_id]) for client in view.history.clients]
    return {
        "federation": view.federation,
        "may_operate": may_operate,
        "headline": _headline(view, Counter(row.state for row in rows.values())),
        "notices": notices(view.history, passed_over()),
        "charts": charts(view.history),
        "clients": {"rows": listed, "more": len(view.history.clients) - len(listed)},
        "sites": _sites(view),
        "versions": [_version(view, logged) for logged in view.versions],
        "quarantine": _quarantine(view),
    }


def _headline(view: FederationView, states: Counter[ClientStatus]) -> Json:
    history, control = view.history, view.control
    last = history.scores.last.metrics if history.scores.last else {}
    best = history.scores.best
    finish = history.finish
    reason = finish.reason if finish is not None else control.finished
    return {
        "status": view.status,
        "news_ms": view.news_ms if view.status == "silent" else None,
        "finished": None if reason is None else wording.plain(reason, _DETAIL),
        "detail": None if finish is None else wording.plain(finish.detail, _DETAIL),
        "started_ms": history.start_ms,
        "version": history.version,
        "promoted": control.promoted,
        "paused": control.paused,
        "accuracy": last.get("accuracy"),
        "loss": last.get("loss"),
        "perplexity": None if history.scores.last is None else _rounded(history.scores.last.others.get("perplexity")),
        "tokens": _tokens(history.tokens),
        "best": None if best is None else [best.metrics["accuracy"], best.version],
        "per_second": round(history.rate.per_second(finish.time_ms if finish else view.now_ms), 2),
        "folded": history.folded,
        "duplicates": history.duplicates,
        "refused": history.rejections.total,
        "staleness": _rounded(history.staleness.value),
        "lag": history.lag if control.lag is None else control.lag,
        "pace_seconds": _rounded(control.pace_seconds),
        "clients": len(history.clients),
        **{str(state): states[state] for state in ClientStatus},
        "sent": _sum(history.traffic.sent),
        "raw": _sum(history.traffic.raw),
        "broadcast": _sum(history.traffic.broadcast),
        "saved_percent": _rounded(history.traffic.saved_percent),
    }


def _tokens(tokens: Tokens) -> list[object] | None:
    """How many, how many a second, and the bytes sent for each; None where no update counts tokens."""
    if not tokens.trained:
        return None
    return [_sum(tokens.trained), _rounded(tokens.per_second), _rounded(tokens.bytes_each)]


def _client(row: ClientRow) -> Json:
    client = row.client
    return {
        "id": wording.plain(client.client_id, _NAME),
        "state": row.state,
        "seen_ms": client.last_seen_ms,
        "examples": client.num_examples,
        "folded": client.folded,
        "refused": client.rejected,
        "duplicates": client.duplicates,
        "staleness": _rounded(client.staleness.value),
        "last_staleness": client.last_staleness,
        "train_seconds": _rounded(client.train_seconds.value),
        "share": round(row.share, 4),
        "sent": _sum(client.bytes_sent),
    }


def _sites(view: FederationView) -> Json:
    """What sites measured: together, each at its newest version, and each by itself."""
    sites = view.history.sites
    now = sites.now()
    together = [
        [
            wording.plain(name, _NAME),
            _rounded(said.mean),
            _rounded(said.spread),
            wording.plain(said.worst, _NAME),
            _rounded(said.worst_value),
            said.sites,
            said.not_finite,
        ]
        for name, said in ({} if now is None else now.metrics).items()
    ]
    rows = [_site(row) for row in site_rows(view.history)]
    return {
        "version": None if now is None else now.version,
        "together": together,
        "rows": rows,
        "models": _models(view.history),
    }


def _models(history: History) -> Json | None:
    """The federation's model and those trained alone, on each site's data; None where nobody trains alone."""
    table = model_table(history)
    if table is None:
        return None
    return {
        "metric": wording.plain(table.metric, _NAME),
        "sites": [wording.plain(name, _NAME) for name in table.sites],
        "rows": [[said_model(row), row.since, [_rounded(value) for value in row.values]] for row in table.rows],
    }


def _site(row: SiteRow) -> Json:
    metrics = dict(row.metrics)
    others = [item for item in row.metrics if item[0] not in CHARTED]
    return {
        "id": wording.plain(row.client_id, _NAME),
        "version": row.version,
        "accuracy": _rounded(metrics.get("accuracy")),
        "loss": _rounded(metrics.get("loss")),
        "others": said_metrics(others[:MOST_METRICS]),
        "examples": row.num_examples,
        "count": row.measured,
        "counts": row.counts,
    }


def _version(view: FederationView, logged: LoggedHead[VersionHead]) -> Json:
    head = logged.head
    score = view.score(head.number)
    return {
        "number": head.number,
        "time_ms": head.time_ms,
        "kind": str(head.kind),
        "contributions": len(head.manifest),
        "rolled_back_to": rolled_back_to(head),
        "clients": len({item.client_id for item in head.manifest}),
        "examples": _sum(sum(item.num_examples for item in head.manifest)),
        "staleness": _rounded(sum(item.staleness for item in head.manifest) / len(head.manifest))
        if head.manifest
        else None,
        "bytes": head.payload_size,
        "digest": head.weights_digest.hex(),
        "accuracy": score.get("accuracy"),
        "loss": score.get("loss"),
        "perplexity": _rounded(score.get("perplexity")),
    }


def version_details(logged: LoggedHead[VersionHead]) -> Json:
    """Return a version with its whole manifest."""
    head = logged.head
    whole = sum(item.weight for item in head.manifest)
    return {
        "number": head.number,
        "parent": head.parent,
        "kind": str(head.kind),
        "time_ms": head.time_ms,
        "rolled_back_to": rolled_back_to(head),
        "codec": head.codec.label,
        "bytes": head.payload_size,
        "partition": logged.partition,
        "offset": logged.offset,
        "weights_digest": head.weights_digest.hex(),
        "payload_digest": head.payload_digest.hex(),
        "layout_digest": head.layout_digest.hex(),
        "build": [[wording.plain(name, 64), wording.plain(value, _NAME)] for name, value in head.build.items()],
        "contributions": [
            {
                "client": wording.plain(item.client_id, _NAME),
                "sequence": item.sequence,
                "partition": item.partition,
                "offset": item.offset,
                "examples": item.num_examples,
                "staleness": item.staleness,
                "weight": item.weight,
                "share": item.weight / whole if whole > 0 else 0.0,
                "clip": item.clip,
                "digest": item.payload_digest.hex(),
            }
            for item in head.manifest
        ],
    }


def _quarantine(view: FederationView) -> Json:
    refusals = view.history.rejections
    return {
        "total": refusals.total,
        "topic": Topics(view.federation).updates,
        "reasons": [[wording.plain(reason, _NAME), count] for reason, count in refusals.by_reason.most_common()],
        "newest": [_refusal(item) for item in refusals.newest],
    }


def _refusal(item: RejectedUpdate) -> Json:
    return {
        "time_ms": item.time_ms,
        "client": None if item.client_id is None else wording.plain(item.client_id, _NAME),
        "sequence": item.sequence,
        "reason": wording.plain(item.reason, _NAME),
        "detail": wording.plain(item.detail, _DETAIL),
        "partition": item.partition,
        "offset": item.offset,
    }


def _sum(value: int) -> int:
    """Bound a sum of what others claimed: JSON ends at 64 bits, and browsers count exactly up to here."""
    return min(value, _MAX_EXACT)


def _rounded(value: float | None) -> float | None:
    """Round to four digits, so that pages are sent no change that they do not show."""
    return None if value is None else float(f"{value:.4g}")

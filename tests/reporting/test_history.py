import json
import random

import pytest

from llmos_stream.errors import Reason, Rejected
from llmos_stream.reporting import History
from llmos_stream.reporting.history.clients import ClientStatus
from llmos_stream.reporting.history.records import ClientRow
from llmos_stream.reporting.history.totals import Scores
from llmos_stream.reporting.terminal import final_rows
from llmos_stream.types import Event, EventKind
from tests.reporting.fake import START_MS, Federation


def fold(events: list[Event], **limits: int) -> History:
    history = History(**limits)
    for event in events:
        history.add(event)
    return history


def event(kind: EventKind, at: float, **data: object) -> Event:
    return Event(kind, "r", START_MS + int(1000 * at), data)


def folded(client_id: str, sequence: int, at: float = 0, **data: object) -> Event:
    return event(EventKind.UPDATE_FOLDED, at, client_id=client_id, sequence=sequence, **data)


def sent(client_id: str, sequence: int, at: float = 0, **data: object) -> Event:
    return event(EventKind.UPDATE_SENT, at, client_id=client_id, sequence=sequence, **data)


def joined(client_id: str, at: float = 0) -> Event:
    return event(EventKind.CLIENT_JOINED, at, client_id=client_id, num_examples=10)


def left(client_id: str, at: float = 0) -> Event:
    return event(EventKind.CLIENT_LEFT, at, client_id=client_id, reason="done", updates=1)


def states(history: History, now: float) -> dict[str, ClientStatus]:
    return {row.client.client_id: row.state for row in history.rows(START_MS + int(1000 * now))}


def numbers(events: list[Event], kind: EventKind, name: str) -> list[float]:
    found = [event.data[name] for event in events if event.kind is kind]
    return [value for value in found if isinstance(value, int | float)]


def test_the_summary_is_what_the_events_add_up_to() -> None:
    events = Federation().events
    summary = fold(events).summary()
    weights = numbers(events, EventKind.UPDATE_FOLDED, "staleness")
    evaluations = [e.data["metrics"] for e in events if e.kind is EventKind.EVALUATION]
    accuracies = [m["accuracy"] for m in evaluations if isinstance(m, dict)]
    sent_bytes = sum(numbers(events, EventKind.UPDATE_SENT, "sent_bytes"))
    raw_bytes = sum(numbers(events, EventKind.UPDATE_SENT, "raw_bytes"))
    finish = next(e.time_ms for e in events if e.kind is EventKind.RUN_FINISHED)
    reasons = [e.data["reason"] for e in events if e.kind is EventKind.UPDATE_REJECTED]
    assert summary == {
        "finished": "target",
        "final_accuracy": accuracies[-1],
        "best_accuracy": max(accuracies),
        "final_loss": pytest.approx(numbers_of(evaluations[-1], "loss")),
        "sites": {"sites": 0, "version": None, "metrics": {}},
        "version": 41,
        "versions": 41,
        "updates": len(weights),
        "updates_sent": sum(e.kind is EventKind.UPDATE_SENT for e in events),
        "duplicates": sum(e.kind is EventKind.UPDATE_DUPLICATE for e in events),
        "rejected": len(reasons),
        "rejected_by_reason": {reason: reasons.count(reason) for reason in dict.fromkeys(reasons)},
        "clipped": sum(clip < 1 for clip in numbers(events, EventKind.UPDATE_FOLDED, "clip")),
        "bytes_sent": sent_bytes,
        "bytes_raw": raw_bytes,
        "bytes_saved_percent": pytest.approx(100 - 100 * sent_bytes / raw_bytes),
        "tokens": 0,
        "tokens_per_second": None,
        "bytes_per_token": None,
        "broadcast_bytes": sum(numbers(events, EventKind.VERSION_PUBLISHED, "payload_bytes")),
        "seconds": (finish - START_MS) / 1000,
        "updates_per_second": pytest.approx(1000 * len(weights) / (finish - START_MS)),
        "mean_staleness": pytest.approx(sum(weights) / len(weights)),
        "clients": 8,
        "clients_slow": ["client-7"],
    }
    assert json.loads(json.dumps(summary)) == summary


def numbers_of(mapping: object, name: str) -> object:
    return mapping[name] if isinstance(mapping, dict) else None


def test_each_client_adds_up() -> None:
    events = Federation().events
    rows = fold(events).rows()
    assert sum(row.share for row in rows) == pytest.approx(1)
    assert [row.share for row in rows] == sorted((row.share for row in rows), reverse=True)
    total = sum(numbers(events, EventKind.UPDATE_FOLDED, "weight"))
    for row in rows:
        own = [event for event in events if event.data.get("client_id") == row.client.client_id]
        staleness = numbers(own, EventKind.UPDATE_FOLDED, "staleness")
        seconds = numbers(own, EventKind.UPDATE_SENT, "train_seconds")
        assert row.client.sent == len(seconds)
        assert row.client.folded == len(staleness)
        assert row.client.rejected == sum(e.kind is EventKind.UPDATE_REJECTED for e in own)
        assert row.client.duplicates == sum(e.kind is EventKind.UPDATE_DUPLICATE for e in own)
        assert row.client.staleness.value == pytest.approx(sum(staleness) / len(staleness))
        assert row.client.last_staleness == staleness[-1]
        assert row.client.train_seconds.value == pytest.approx(sum(seconds) / len(seconds))
        assert row.share == pytest.approx(sum(numbers(own, EventKind.UPDATE_FOLDED, "weight")) / total)
        assert row.client.bytes_sent == sum(numbers(own, EventKind.UPDATE_SENT, "sent_bytes"))
        assert row.client.num_examples == own[0].data["num_examples"]


def rounded(history: History) -> list[tuple[object, ...]]:
    return [tuple(round(x, 9) if isinstance(x, float) else x for x in numbers_in(row)) for row in history.rows()]


def numbers_in(row: ClientRow) -> tuple[object, ...]:
    client = row.client
    means = (client.staleness.value, client.last_staleness, client.train_seconds.value)
    counts = (client.num_examples, client.sent, client.folded, client.duplicates, client.rejected, client.bytes_sent)
    return (client.client_id, *counts, *means, row.silent_seconds, row.share, row.state)


def test_a_log_that_is_read_again_changes_nothing() -> None:
    events = Federation().events
    once, half, twice = fold(events), fold([*events, *events[: len(events) // 2]]), fold([*events, *events])
    assert once.summary() == half.summary() == twice.summary()
    assert rounded(once) == rounded(half) == rounded(twice)
    assert list(once.updates) == list(twice.updates)
    assert once.contributions.ranges() == twice.contributions.ranges()


@pytest.mark.parametrize("seed", range(5))
def test_the_order_of_the_events_does_not_matter(seed: int) -> None:
    events = Federation().events
    shuffled = [*events, *events[::7]]
    random.Random(seed).shuffle(shuffled)  # noqa: S311
    expected, got = fold(events), fold(shuffled)
    assert got.summary() == expected.summary()
    assert rounded(got) == rounded(expected)
    assert got.scores.in_order() == expected.scores.in_order()
    times = [point.time_ms for point in got.traffic.points]
    assert times == sorted(times)


def test_an_event_outside_the_table_is_refused_and_changes_nothing() -> None:
    history = fold(Federation().events)
    before = history.summary()
    for bad in (
        Event(EventKind.UPDATE_FOLDED, "r", 5, {"client_id": "new", "sequence": 1, "weight": -1}),
        Event(EventKind.CLIENT_JOINED, "r", -5, {"client_id": "new"}),
        Event(EventKind.EVALUATION, "r", 5, {"version": 99, "metrics": {"accuracy": "high"}}),
    ):
        with pytest.raises(Rejected) as caught:
            history.add(bad)
        assert caught.value.reason is Reason.MALFORMED
    assert history.summary() == before


def test_identities_are_told_apart() -> None:
    place = {"partition": 0, "offset": 7}
    history = fold(
        [
            folded("a", 1),
            folded("a", 1, at=3),
            folded("a", 2),
            folded("b", 1),
            sent("a", 1),
            event(EventKind.UPDATE_DUPLICATE, 1, client_id="a", sequence=1, **place),
            event(EventKind.UPDATE_DUPLICATE, 2, client_id="a", sequence=1, **place),
            event(EventKind.UPDATE_DUPLICATE, 2, client_id="a", sequence=1, partition=0, offset=8),
            event(EventKind.UPDATE_REJECTED, 2, client_id="a", sequence=1, reason="too_stale", **place),
            event(EventKind.UPDATE_REJECTED, 2, client_id=None, reason="malformed", partition=1, offset=7),
            event(EventKind.UPDATE_REJECTED, 3, client_id=None, reason="malformed", partition=1, offset=7),
        ]
    )
    assert (history.folded, history.sent, history.duplicates, history.rejections.total) == (3, 1, 2, 2)
    assert history.rejections.by_reason == {"too_stale": 1, "malformed": 1}


def test_scores_go_by_version_and_the_first_evaluation_counts() -> None:
    def evaluation(version: int, at: float, **metrics: float) -> Event:
        return event(EventKind.EVALUATION, at, version=version, metrics=metrics)

    history = fold(
        [
            evaluation(3, 5, accuracy=0.7, loss=1.0),
            evaluation(1, 6, accuracy=0.9),
            evaluation(2, 7, accuracy=0.9),
            evaluation(3, 8, accuracy=0.1),
            evaluation(4, 9, loss=float("nan"), perplexity=3.0),
        ]
    )
    assert history.scores.best is not None
    assert history.scores.best.version == 1
    assert [point.version for point in history.scores.in_order()] == [1, 2, 3, 4]
    summary = history.summary()
    assert (summary["final_accuracy"], summary["best_accuracy"], summary["final_loss"]) == (None, 0.9, None)
    assert history.scores.last is not None
    assert history.scores.last.all_metrics == {"perplexity": 3.0}
    assert ("perplexity", "3.0000 at version 4") in final_rows(history)


def test_a_task_that_measures_without_end_is_kept_in_part() -> None:
    told = {f"class {number:03}": 0.5 for number in range(900)} | {"accuracy": 0.9, "x" * 500: 0.1}
    scores = Scores(10)
    scores.add(1, 0, told)
    assert scores.last is not None
    assert list(scores.last.all_metrics) == ["accuracy", *(f"class {number:03}" for number in range(16))]
    scores.add(2, 0, {"x" * 500: 0.1})
    assert list(scores.last.all_metrics) == ["x" * 128]


def test_the_initial_version_is_broadcast_but_not_counted() -> None:
    history = fold(
        [
            event(EventKind.VERSION_PUBLISHED, 0, version=0, parent=None, contributions=0, payload_bytes=100),
            event(EventKind.VERSION_PUBLISHED, 1, version=1, parent=0, contributions=4, payload_bytes=10),
            event(EventKind.VERSION_PUBLISHED, 2, version=2),
        ]
    )
    assert (history.version, history.version_count, history.traffic.broadcast) == (2, 2, 110)


def test_nothing_happened() -> None:
    summary = History().summary()
    assert {summary[name] for name in ("final_accuracy", "bytes_saved_percent", "updates_per_second")} == {None}
    assert summary["seconds"] == summary["updates"] == summary["clients"] == 0
    assert History().rows(5) == []


def test_a_client_is_present_until_its_own_last_word_is_that_it_left() -> None:
    history = fold([joined("a"), sent("a", 1, at=2), left("a", at=3)])
    assert states(history, 3) == {"a": ClientStatus.LEFT}
    history.add(folded("a", 1, at=4))
    assert states(history, 4) == {"a": ClientStatus.LEFT}
    history.add(joined("a", at=5))
    assert states(history, 5) == {"a": ClientStatus.TRAINING}
    history.add(left("a", at=3))
    assert states(history, 6) == {"a": ClientStatus.TRAINING}
    history.add(left("a", at=7))
    history.add(sent("a", 2, at=8))
    assert states(history, 8) == {"a": ClientStatus.TRAINING}


@pytest.mark.parametrize("clients", [2, 3, 9])
def test_a_client_that_trains_far_longer_than_the_median_is_slow(clients: int) -> None:
    names = [f"c{index}" for index in range(clients)]
    usual = [sent(name, n, at=n, train_seconds=1.0) for name in names[1:] for n in range(4)]
    assert states(fold([*usual, *(sent("c0", n, at=n, train_seconds=2.5) for n in range(4))]), 4)["c0"] == "slow"
    assert states(fold([*usual, *(sent("c0", n, at=n, train_seconds=1.9) for n in range(4))]), 4)["c0"] == "training"


def test_a_client_alone_is_never_slow() -> None:
    assert states(fold([sent("a", n, at=n, train_seconds=100.0) for n in range(3)]), 3) == {"a": ClientStatus.TRAINING}


def test_a_client_that_is_silent_far_longer_than_usual_is_late() -> None:
    events = [sent(name, n, at=10 * n) for name in "abc" for n in range(4)]
    history = fold([*events, *(sent("d", n, at=3 * n) for n in range(10))])
    assert set(states(history, 45).values()) == {ClientStatus.TRAINING}
    history = fold([*events, *(sent(name, n, at=10 * n) for name in "ab" for n in range(4, 9))])
    assert states(history, 80)["c"] is ClientStatus.LATE
    assert states(history, 80)["a"] is ClientStatus.TRAINING
    assert history.rows(START_MS + 80_000)[2].silent_seconds == 50


def test_seconds_of_silence_are_not_lateness_where_updates_are_quick() -> None:
    history = fold([sent("a", n, at=n / 10) for n in range(20)])
    assert states(history, 6.0) == {"a": ClientStatus.TRAINING}
    assert states(history, 8.0) == {"a": ClientStatus.LATE}


def test_after_the_run_a_client_that_stayed_is_done() -> None:
    history = fold([joined("a"), joined("b"), left("b", at=1), event(EventKind.RUN_FINISHED, 2, reason="target")])
    history.add(left("a", at=3))
    assert states(history, 1000) == {"a": ClientStatus.DONE, "b": ClientStatus.LEFT}
    assert history.seconds == 2


def test_who_leaves_in_the_millisecond_of_the_end_did_not_leave_early() -> None:
    history = fold([joined("a"), joined("b"), left("b", at=1), event(EventKind.RUN_FINISHED, 2, reason="target")])
    history.add(left("a", at=2))
    assert states(history, 1000) == {"a": ClientStatus.DONE, "b": ClientStatus.LEFT}


def test_a_clients_clock_does_not_stretch_the_run() -> None:
    server = [folded("a", n, at=n) for n in range(10)]
    history = fold([*server, Event(EventKind.UPDATE_SENT, "b", 0, {"client_id": "b", "sequence": 1, "sent_bytes": 5})])
    assert history.start_ms == START_MS
    history.add(sent("c", 1, at=10**7, sent_bytes=5))
    assert history.seconds == 9
    assert {point.time_ms for point in history.traffic.points} == {START_MS + 9000}
    assert [row.silent_seconds for row in history.rows() if row.client.client_id == "c"] == [0]


def test_memory_does_not_grow_with_the_run() -> None:
    history = History(limit=100)
    for n in range(3000):
        history.add(sent("a", n, at=n, sent_bytes=1, raw_bytes=4))
        history.add(folded("a", n, at=n, staleness=n, weight=1.0, version=n))
        history.add(event(EventKind.VERSION_PUBLISHED, n, version=n, parent=n - 1 if n else None))
        history.add(event(EventKind.EVALUATION, n, version=n, metrics={"accuracy": n / 3000}))
        history.add(event(EventKind.UPDATE_REJECTED, n, reason=f"reason {n}", partition=n, offset=n))
        history.add(joined("a", at=n))
    points = (history.updates, history.versions, history.scores.points, history.traffic.points)
    assert all(len(series) <= 101 for series in points)
    assert len(history.rejections.by_reason) <= 65
    assert len(history.rejections.newest) <= 200
    assert len(history.contributions.ranges()) <= 32
    client = history.clients.get("a")
    assert client is not None
    assert len(client.presence) <= 32
    assert len(client.histogram) <= 101
    summary = history.summary()
    assert (summary["updates"], summary["rejected"], summary["best_accuracy"]) == (3000, 3000, 2999 / 3000)
    assert summary["mean_staleness"] == 2999 / 2


def test_clients_beyond_the_cap_share_a_bucket_and_totals_stay_exact() -> None:
    events = [folded(f"c{n % 50}", n // 50, at=n, weight=1.0, version=n, staleness=1) for n in range(200)]
    history = fold([*events, *events], client_limit=10)
    rows = history.rows()
    assert [row.client.client_id for row in rows] == sorted(f"c{n}" for n in range(10))
    assert history.folded == 200
    assert history.clients.others.folded == 160
    assert history.summary()["clients"] == 50
    assert sum(row.share for row in rows) == pytest.approx(0.2)
    assert sum(sums[None] for _, sums in history.contributions.ranges() if None in sums) == 160


def test_a_client_that_left_gives_its_row_to_a_newcomer() -> None:
    history = fold(
        [
            *(folded(name, 1, weight=1.0, version=3, staleness=2) for name in "abc"),
            left("b", at=1),
            left("a", at=2),
            joined("b", at=3),
            joined("d", at=4),
            joined("e", at=5),
        ],
        client_limit=3,
    )
    assert {row.client.client_id for row in history.rows()} == {"b", "c", "d"}
    assert history.clients.others.folded == 1
    assert history.clients.others.staleness.value == 2
    assert history.contributions.ranges() == [(3, {"b": 1.0, "c": 1.0, None: 1.0})]
    assert history.summary()["clients"] == 5


def test_a_refused_message_gives_nobody_a_row() -> None:
    refused = [
        event(EventKind.UPDATE_REJECTED, n, client_id=f"made-up-{n}", reason="malformed", partition=0, offset=n)
        for n in range(20)
    ]
    history = fold([joined("a"), *refused])
    assert history.summary()["clients"] == 1
    assert history.rejections.total == 20


def test_long_names_and_details_are_cut() -> None:
    history = fold([joined("x" * 10_000)])
    history.add(event(EventKind.UPDATE_REJECTED, 1, client_id="y" * 10_000, reason="z" * 10_000, detail="d" * 10_000))
    assert [len(row.client.client_id) for row in history.rows()] == [128]
    assert max(len(str(value)) for value in history.rejections.newest[0]) == 300


@pytest.mark.parametrize("limits", [{"limit": 1}, {"client_limit": 0}])
def test_limits_must_leave_room(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="limit"):
        History(**limits)


def test_a_run_that_goes_on_has_not_finished_whatever_the_order() -> None:
    first = event(EventKind.RUN_FINISHED, 2, reason="target", version=3)
    again = event(EventKind.RUN_RESUMED, 5, version=3)
    last = event(EventKind.RUN_FINISHED, 9, reason="finish", version=4)
    for events in ([first, again], [again, first], [again, first, again, first]):
        history = fold(events)
        assert history.finish is None
        assert history.summary()["finished"] is None
    for events in ([first, again, last], [last, again, first], [again, last, first]):
        finish = fold(events).finish
        assert finish is not None
        assert (finish.reason, finish.version) == ("finish", 4)

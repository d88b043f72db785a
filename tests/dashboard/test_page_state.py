"""The state behind the page: what it says, and that it stays of one size."""

import math
from dataclasses import replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_stream.broker import MemoryBroker, Topics, TopicSpec
from llmos_stream.dashboard.federation_view import FederationView, Status
from llmos_stream.dashboard.page_state import page_state, version_details
from llmos_stream.dashboard.recent_versions import RecentVersions
from llmos_stream.log import ControlView
from llmos_stream.types import Event, EventKind
from llmos_stream.wire.control import AGGREGATOR, Leader, dump_setting
from llmos_stream.wire.events import FIELDS, amount, metrics, text, whole
from llmos_stream.wire.fields import MAX_TIME_MS
from tests.dashboard.aids import NOW, event, head
from tests.reporting.fake import Federation

HOSTILE = '<img src=x onerror="alert(1)">\u202e\x1b[31m__proto__'


def folded(index: int, clients: int = 2000) -> dict[str, object]:
    return {
        "client_id": f"client-{index % clients}",
        "sequence": index // clients,
        "version": index // 4,
        "staleness": index % 7,
        "weight": 1.0,
        "partition": 0,
        "offset": index,
    }


def fill(view: FederationView, first: int, last: int) -> None:
    """A run with very many clients and versions, refusals among them; five events a turn."""
    for index in range(first, last):
        view.add_event(event(EventKind.UPDATE_FOLDED, index / 100, **folded(index)))
        view.add_event(event(EventKind.UPDATE_SENT, index / 100, **folded(index) | {"sent_bytes": 10, "raw_bytes": 40}))
        view.add_event(event(EventKind.VERSION_PUBLISHED, index / 100, version=index, lag=3, pace_seconds=0.5))
        view.add_event(event(EventKind.EVALUATION, index / 100, version=index, metrics={"accuracy": 0.5, "loss": 1.0}))
        rejected: dict[str, object] = {"reason": f"r-{index % 200}", "partition": 0, "offset": index}
        view.add_event(event(EventKind.UPDATE_REJECTED, index / 100, **rejected))
        view.add_version(head(index), 0, index)


def test_the_state_stays_of_one_size() -> None:
    view = FederationView("trial", clock=lambda: NOW + 100)
    sizes = []
    for first in range(0, 8000, 2000):
        fill(view, first, first + 2000)  # 10,000 events
        sizes.append(len(orjson.dumps(page_state(view, False))))
    assert max(sizes[1:]) < 1.15 * min(sizes[1:])
    assert sizes[-1] < 600_000
    shown: Any = page_state(view, False)
    assert len(shown["clients"]["rows"]) == 1000
    assert shown["clients"]["more"] == 1000
    assert len(shown["versions"]) == 200
    assert shown["versions"][-1]["accuracy"] == 0.5
    assert len(shown["quarantine"]["newest"]) == 200
    assert len(shown["quarantine"]["reasons"]) <= 65
    assert len(view._scores) <= 400
    assert all(len(trace["x"]) <= 401 for trace in shown["charts"][0]["figure"]["data"])


def test_provenance_is_bounded_by_versions_and_by_contributions() -> None:
    many = RecentVersions(versions=10, contributions=10_000)
    for number in range(100):
        many.add(head(number), 0, number)
        many.add(head(number), 0, number)
    assert [origin.head.number for origin in many] == list(range(90, 100))
    many.add(head(3), 0, 3)  # older than all that is held
    assert many.get(3) is None
    wide = RecentVersions(versions=10, contributions=100)
    for number in range(1, 20):
        wide.add(head(number, clients=40), 0, number)
    assert [origin.head.number for origin in wide] == [18, 19]


def test_the_headline_of_a_run() -> None:
    federation = Federation()
    view = FederationView("trial", clock=lambda: federation.events[-1].time_ms / 1000)
    for item in federation.events:
        view.add_event(item)
    shown: Any = page_state(view, True)
    now, expected = shown["headline"], federation.history().summary()
    assert now["status"] == "finished"
    assert now["finished"] == "target"
    for name, of in (
        ("version", "version"),
        ("accuracy", "final_accuracy"),
        ("folded", "updates"),
        ("sent", "bytes_sent"),
    ):
        assert now[name] == expected[of], name
    assert now["refused"] == sum(count for _, count in shown["quarantine"]["reasons"])
    assert [chart["name"] for chart in shown["charts"]] == ["scores-version", "staleness", "weights", "flow", "traffic"]


def test_tokens_and_perplexity_of_a_language_model() -> None:
    view = FederationView("trial", clock=lambda: NOW)
    view.add_event(event(EventKind.VERSION_PUBLISHED, version=0))
    shown: Any = page_state(view, False)
    assert (shown["headline"]["tokens"], shown["headline"]["perplexity"]) == (None, None)
    for sequence, tokens in enumerate((3000.0, 1000.0, math.nan, -1.0)):
        sent = {"train_seconds": 2.0, "sent_bytes": 500, "metrics": {"loss": 3.0, "tokens": tokens}}
        view.add_event(event(EventKind.UPDATE_SENT, client_id="a", sequence=sequence, **sent))
    view.add_event(event(EventKind.EVALUATION, version=0, metrics={"loss": 3.0, "perplexity": math.exp(3.0)}))
    shown = page_state(view, False)
    assert shown["headline"]["tokens"] == [4000, 1000.0, 0.25]
    assert shown["headline"]["perplexity"] == 20.09
    assert view.score(0)["perplexity"] == math.exp(3.0)
    summary = view.history.summary()
    assert (summary["tokens"], summary["tokens_per_second"], summary["bytes_per_token"]) == (4000, 1000.0, 0.25)


def test_waiting_training_silent_and_finished() -> None:
    clock = [NOW]
    view = FederationView("trial", clock=lambda: clock[0])

    def status() -> Status:
        return view.status

    assert status() is Status.WAITING
    view.add_event(event(EventKind.VERSION_PUBLISHED, version=0))
    assert status() is Status.WAITING
    view.add_event(event(EventKind.CLIENT_JOINED, client_id="a"))
    assert status() is Status.TRAINING
    clock[0] = NOW + 16
    assert status() is Status.SILENT
    view.add_event(event(EventKind.CLIENT_LEFT, 16, client_id="a"))
    assert status() is Status.WAITING
    view.add_event(event(EventKind.RUN_FINISHED, 17, reason="target"))
    clock[0] = NOW + 1000
    assert status() is Status.FINISHED
    view.add_event(event(EventKind.RUN_RESUMED, 1000, version=0))
    view.add_event(event(EventKind.CLIENT_JOINED, 1000, client_id="a"))
    assert status() is Status.TRAINING


async def test_a_beat_is_news_and_a_pause_is_shown() -> None:
    clock, topic = [NOW], Topics("trial").control
    view = FederationView("trial", clock=lambda: clock[0])

    def status() -> Status:
        return view.status

    view.add_event(event(EventKind.VERSION_PUBLISHED, version=0))
    view.add_event(event(EventKind.CLIENT_JOINED, client_id="a"))
    async with MemoryBroker() as broker, broker.producer() as producer:
        await broker.create_topics([TopicSpec(topic)])
        async with broker.reader([topic], start="earliest") as reader:
            control = ControlView(reader)

            async def beat(lag: int) -> None:
                await producer.send(topic, dump_setting(Leader(1, "one", lag=lag, pace_seconds=0.25)), key=AGGREGATOR)
                await control.catch_up()

            await beat(3)
            clock[0] = NOW + 60
            view.update_control(control, live=False)
            assert status() is Status.SILENT  # it may have lain there for a year
            await beat(4)
            view.update_control(control, live=True)
            assert status() is Status.TRAINING
            shown: Any = page_state(view, False)
            assert (shown["headline"]["lag"], shown["headline"]["pace_seconds"]) == (4, 0.25)
            control.paused = True
            view.update_control(control, live=True)
            assert status() is Status.PAUSED


def test_names_from_outside_are_values_on_one_line() -> None:
    view = FederationView("trial", clock=lambda: NOW)
    view.add_event(event(EventKind.CLIENT_JOINED, client_id=HOSTILE))
    view.add_event(event(EventKind.UPDATE_FOLDED, **folded(1) | {"client_id": HOSTILE}))
    view.add_event(event(EventKind.UPDATE_REJECTED, client_id=HOSTILE, reason=HOSTILE, detail=HOSTILE * 100))
    view.add_version(head(1, name=HOSTILE), 0, 5)
    origin = view.versions.get(1)
    assert origin is not None
    for shown in (page_state(view, False), version_details(origin)):
        text = orjson.dumps(shown).decode()
        assert "onerror" in text
        assert "\\u202e" not in text
        assert "\u202e" not in text
        assert "\\u001b" not in text
        for key in _keys(shown):
            assert "onerror" not in key


def _keys(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(key for item in value.values() for key in _keys(item))]
    return [key for item in value for key in _keys(item)] if isinstance(value, list) else []


@pytest.mark.parametrize("data", [{"version": "one"}, {"version": 1, "metrics": {"accuracy": "high"}}])
def test_an_event_that_is_not_of_the_table_is_passed_over(data: dict[str, object]) -> None:
    view = FederationView("trial", clock=lambda: NOW)
    view.add_event(event(EventKind.EVALUATION, **data))
    assert view.changes == 0


_VALUES: dict[object, st.SearchStrategy[object]] = {
    text: st.sampled_from(["", "a", "b", HOSTILE, "x" * 5000]),
    whole: st.sampled_from([0, 1, 7, 2**53, 2**63 - 1]),
    amount: st.sampled_from([0.0, 0.5, 9.2e18]),
    metrics: st.dictionaries(st.sampled_from(["accuracy", "loss", "f1"]), st.sampled_from([-1.7e308, 0.5, 1.7e308])),
}


def _events() -> st.SearchStrategy[Event]:
    def of(kind: EventKind) -> st.SearchStrategy[Event]:
        fields = {name: _VALUES[field.read] for name, field in FIELDS[kind].items()}
        times = st.sampled_from([0, int(NOW * 1000), int(NOW * 1000) + 5000, MAX_TIME_MS])
        data = st.fixed_dictionaries(fields)
        return st.builds(Event, st.just(kind), st.sampled_from(["client", "aggregator"]), times, data)

    return st.sampled_from(EventKind).flatmap(of)


@given(st.lists(_events(), max_size=30))
def test_no_event_that_is_taken_keeps_the_page_from_being_made(events: list[Event]) -> None:
    """A client writes its own events: whatever they claim, the monitor goes on."""
    view = FederationView("trial", clock=lambda: NOW)
    for item in events:
        view.add_event(item)
    assert len(orjson.dumps(page_state(view, True))) < 1_000_000


def test_sums_of_claims_that_no_number_of_json_holds() -> None:
    view = FederationView("trial", clock=lambda: NOW)
    for sequence in range(4):
        sizes = {"sent_bytes": 2**63 - 1, "raw_bytes": 2**63 - 1}
        view.add_event(event(EventKind.UPDATE_SENT, client_id="a", sequence=sequence, **sizes))
        view.add_event(event(EventKind.VERSION_PUBLISHED, version=sequence, payload_bytes=2**63 - 1))
    shown: Any = orjson.loads(orjson.dumps(page_state(view, True)))
    assert shown["headline"]["sent"] == shown["clients"]["rows"][0]["sent"] == 2**53 - 1


def test_a_version_of_very_many_examples_is_shown() -> None:
    many = tuple(replace(item, num_examples=2**63 - 1, weight=1e308) for item in head(1, clients=4).manifest)
    view = FederationView("trial", clock=lambda: NOW)
    view.add_version(replace(head(1), manifest=many), 0, 0)
    origin = view.versions.get(1)
    assert origin is not None
    assert orjson.dumps([page_state(view, True), version_details(origin)])

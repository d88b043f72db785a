"""What anybody writes among the events: what cannot be of the run is counted and passed over, all else handed on."""

import asyncio
import io
import time
from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY
from rich.console import Console

from llmos_stream.broker import Broker, MemoryBroker, Record, Topics
from llmos_stream.cli.progress import ProgressDisplay, show_progress
from llmos_stream.log.events import follow_events, read_events
from llmos_stream.runtime import Shutdown, run_all
from llmos_stream.types import Event, TopicKind
from tests.roles.aids import aggregator, delta_of, settings_for, update

_DAYS_MS = 3 * 24 * 3_600_000
_SETTINGS = settings_for("watched")
_TOPIC = Topics("watched").events


def _record(kind: str, role: str, later_ms: int = 0, **data: object) -> bytes:
    now = int(time.time() * 1000) + later_ms
    return orjson.dumps({"kind": kind, "role": role, "time_ms": now, "data": data})


def _of_client(**data: object) -> bytes:
    """An evaluation that client `a` tells, with changes."""
    told = {"client_id": "a", "version": 1, "metrics": {"accuracy": 0.95}, "num_examples": 10}
    return _record("evaluation", "client", 0, **(told | data))


_FOREIGN: dict[str, tuple[bytes | None, bytes]] = {
    "a client without a key": (None, _record("client_joined", "client", client_id="nobody")),
    "a version without a key": (None, _record("version_published", "aggregator", version=1)),
    "a client's evaluation among the events": (b"a", _of_client(version=0)),
    "a left that another one says": (b"evaluator", _record("client_left", "client", client_id="a")),
    "an evaluation of no version": (b"evaluator", _record("evaluation", "evaluator", version=10**15, metrics={})),
    "an evaluation among the events": (b"evaluator", _record("evaluation", "evaluator", version=1, metrics={})),
    "the next version": (b"aggregator", _record("version_published", "aggregator", version=2)),
    "an update folded into none": (
        b"a",
        _record("update_folded", "aggregator", client_id="a", sequence=1, version=2**62),
    ),
    "a staleness above its version": (
        b"a",
        _record("update_folded", "aggregator", client_id="a", sequence=9, version=1, staleness=2),
    ),
    "the end of a run under way": (b"aggregator", _record("run_finished", "aggregator", reason="evil", version=1)),
    "the going on of a run that has not ended": (b"aggregator", _record("run_resumed", "aggregator", version=1)),
    "the future": (b"aggregator", _record("version_published", "aggregator", _DAYS_MS, version=1)),
    "the past": (b"aggregator", _record("version_published", "aggregator", -_DAYS_MS, version=1)),
    "rubbish": (b"x", b"rubbish"),
    "nothing": (b"x", b""),
    "a long text": (b"a", _record("client_left", "client", client_id="a", reason="x" * 900_000)),
}
_NO_EVALUATIONS: dict[str, tuple[bytes | None, bytes]] = {
    "another kind of event": (b"b", _record("client_joined", "client", client_id="b")),
    "the end of the run": (b"aggregator", _record("run_finished", "aggregator", reason="evil", version=1)),
    "no version": (b"evaluator", _record("evaluation", "evaluator", version=2, metrics={"accuracy": 0.5})),
    "a version below all": (b"evaluator", _record("evaluation", "evaluator", version=-1, metrics={"accuracy": 0.5})),
    "a version above all": (b"evaluator", _record("evaluation", "evaluator", version=2**63, metrics={})),
    "an accuracy above one": (b"evaluator", _record("evaluation", "evaluator", version=1, metrics={"accuracy": 1.5})),
    "a loss that is none": (b"evaluator", _record("evaluation", "evaluator", version=1, metrics={"loss": 1e300})),
    "a text for a number": (b"evaluator", _record("evaluation", "evaluator", version=1, metrics={"loss": "low"})),
    "more names than any": (
        b"evaluator",
        _record("evaluation", "evaluator", version=1, metrics={str(number): 1.0 for number in range(5000)}),
    ),
    "a name without end": (b"evaluator", _record("evaluation", "evaluator", version=1, metrics={"x" * 5000: 1.0})),
    "no key": (None, _record("evaluation", "evaluator", version=1, metrics={"accuracy": 0.5})),
    "another's key": (b"a", _record("evaluation", "evaluator", version=1, metrics={"accuracy": 0.5})),
    "the future": (b"evaluator", _record("evaluation", "evaluator", _DAYS_MS, version=1, metrics={})),
    "a client that tells of another": (b"b", _of_client()),
    "a client without a key": (None, _of_client()),
    "a client that plays the evaluator": (
        b"a",
        _record("evaluation", "evaluator", client_id="a", version=1, metrics={}),
    ),
    "a client without a name": (b"client", _record("evaluation", "client", version=1, metrics={}, num_examples=9)),
    "a client of a name that none can have": (b"a\nb", _of_client(client_id="a\nb")),
    "a client's version that never was": (b"a", _of_client(version=2)),
    "a client's version below all": (b"a", _of_client(version=-1)),
    "ten thousand metrics": (b"a", _of_client(metrics={str(number): 1.0 for number in range(10_000)})),
    "a hundred metrics": (b"a", _of_client(metrics={str(number): 1.0 for number in range(100)})),
    "fewer than no examples": (b"a", _of_client(num_examples=-10)),
    "no examples": (b"a", _of_client(num_examples=0)),
    "more examples than there are": (b"a", _of_client(num_examples=2**62)),
    "examples without number": (b"a", _of_client(num_examples="many")),
    "a client's loss that is none": (b"a", _of_client(metrics={"loss": -1e300})),
    "a client's accuracy above one": (b"a", _of_client(metrics={"accuracy": 9.0})),
    "a model of the future": (b"a", _of_client(trained_by="b", since=2)),
    "a model since no version": (b"a", _of_client(trained_by="b")),
    "a model of a name that none can have": (b"a", _of_client(trained_by="b c", since=0)),
    "an evaluator's of another model": (
        b"evaluator",
        _record("evaluation", "evaluator", version=1, metrics={}, trained_by="a", since=0),
    ),
    "rubbish": (b"x", b"rubbish"),
    "nothing": (b"x", b""),
    "depth": (b"x", b"[" * 5000 + b"]" * 5000),
}
_HONEST = [
    (b"b", _record("client_joined", "client", client_id="b")),
    (b"b", _record("client_left", "c", client_id="b")),
]


def _passed_over(topic: str = "events") -> float:
    return REGISTRY.get_sample_value("llmos_foreign_records_total", {"topic": topic}) or 0.0


async def _write(broker: Broker, *records: tuple[bytes | None, bytes], topic: str = _TOPIC) -> None:
    async with broker.producer() as producer:
        for key, value in records:
            await producer.send(topic, value, key=key)


async def _followed(broker: Broker) -> list[Event]:
    found: list[Event] = []
    over = Shutdown()
    over.request()  # what is in the log by then is handed on
    await follow_events(broker, Topics("watched"), found.append, over)
    return found


@pytest.mark.parametrize("name", _FOREIGN)
async def test_it_is_counted_and_passed_over(name: str) -> None:
    async with MemoryBroker() as broker, aggregator(broker, _SETTINGS) as running:
        await running.send(update(delta_of(0.1), sequence=0))
        await running.version(1)
        honest = [event async for event in read_events(broker, running.topics)]
        await _write(broker, _FOREIGN[name], *_HONEST)
        before = _passed_over()
        events = [event async for event in read_events(broker, running.topics)]
        assert events[: len(honest)] == honest
        assert [event.kind for event in events[len(honest) :]] == ["client_joined", "client_left"]
        assert _passed_over() == before + 1
        assert await _followed(broker) == events


async def test_a_control_record_counts_once_where_its_process_follows_the_topic_anyway() -> None:
    found: list[Event] = []
    over = Shutdown()
    over.request()
    async with MemoryBroker() as broker, aggregator(broker, _SETTINGS) as running:
        await running.version(0)
        before = _passed_over("control")
        await _write(broker, (b"paused", b"rubbish"), topic=running.topics.control)
        await running.until(lambda: _passed_over("control") == before + 1)
        await follow_events(broker, running.topics, found.append, over, counted={TopicKind.CONTROL})
        assert _passed_over("control") == before + 1
        await follow_events(broker, running.topics, found.append, over)
        assert _passed_over("control") == before + 2


async def test_an_evaluation_counts_once_where_an_aggregator_and_its_display_read_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shown: list[Event] = []
    monkeypatch.setattr(ProgressDisplay, "take", lambda _, event: shown.append(event))
    settings, before = settings_for("watched", stop={"target": 0.9}), _passed_over("evaluations")
    foreign = [_NO_EVALUATIONS[name] for name in ("an accuracy above one", "no key", "rubbish", "no examples")]
    honest = (b"evaluator", _record("evaluation", "evaluator", version=0, metrics={"accuracy": 0.95}))
    async with MemoryBroker() as broker, aggregator(broker, settings) as running:
        display = asyncio.create_task(show_progress(broker, settings, Console(file=io.StringIO())))
        await running.version(0)
        await _write(broker, *foreign, honest, topic=running.topics.evaluations)
        await running.until(lambda: any(event.kind == "evaluation" for event in shown))
        assert (await running.task) is not None  # so it has read them, too
        display.cancel()
        await asyncio.wait([display])
    assert _passed_over("evaluations") == before + len(foreign)


async def test_what_is_heard_before_its_version_is_known_is_handed_on_once_it_is() -> None:
    """A transaction's records reach the readers of two topics at two moments."""
    found: list[Event] = []
    over = Shutdown()
    async with MemoryBroker() as broker, aggregator(broker, _SETTINGS) as running:
        await running.version(0)

        def take(event: Event) -> None:
            found.append(event)
            if event.data.get("version") == 1 and event.kind == "evaluation":
                over.request()

        async def run() -> None:
            early = _record("evaluation", "evaluator", version=1, metrics={"loss": 0.5})
            await _write(broker, (b"evaluator", early), topic=running.topics.evaluations)
            await running.send(update(delta_of(0.1), sequence=0))

        await run_all(follow_events(broker, running.topics, take, over), run())
    evaluations: list[Any] = [event.data for event in found if event.kind == "evaluation"]
    assert evaluations == [{"version": 1, "metrics": {"loss": 0.5}}]


async def test_what_comes_after_an_event_that_waits_for_its_version_comes_after_it_still() -> None:
    """Or sums by version would be others live than afterwards."""
    found, over = list[Event](), Shutdown()
    async with MemoryBroker() as broker, aggregator(broker, _SETTINGS) as running:
        await running.version(0)
        before = [event async for event in read_events(broker, running.topics)]

        def take(event: Event) -> None:
            found.append(event)
            if event.kind == "version_published" and event.data["version"] == 1 and event.role == "aggregator":
                over.request()

        async def run() -> None:
            early = _record("update_folded", "aggregator", client_id="a", sequence=1, version=1)
            await _write(broker, (b"a", early), *_HONEST)
            await running.until(lambda: len(found) == len(before))
            await running.send(update(delta_of(0.1), sequence=0))

        await run_all(follow_events(broker, running.topics, take, over), run())
        assert [event.kind for event in found[len(before) :]][:3] == ["update_folded", "client_joined", "client_left"]
        assert [event async for event in read_events(broker, running.topics)] == found


async def test_a_flood_of_versions_that_there_are_not_holds_back_nothing_for_good() -> None:
    flood = [(b"aggregator", _record("version_published", "aggregator", version=number)) for number in range(2, 10_500)]
    async with MemoryBroker() as broker, aggregator(broker, _SETTINGS) as running:
        await running.send(update(delta_of(0.1), sequence=0))
        await running.version(1)
        honest = [event async for event in read_events(broker, running.topics)]
        await _write(broker, *flood, *_HONEST)
        before = _passed_over()
        events = [event async for event in read_events(broker, running.topics)]
        assert [event.kind for event in events[len(honest) :]] == ["client_joined", "client_left"]
        assert _passed_over() == before + len(flood)
        assert await _followed(broker) == events


async def _are_passed_over_by_everybody(records: Sequence[tuple[bytes | None, bytes]]) -> None:
    """By the aggregator too: what it ends the run for, and what it goes on from."""
    settings = settings_for("watched", stop={"target": 0.9})
    topic, count = Topics("watched").evaluations, len(records)
    good = _record("evaluation", "evaluator", version=1, metrics={"accuracy": 0.5})
    best = _record("evaluation", "evaluator", version=1, metrics={"accuracy": 0.95})
    async with MemoryBroker() as broker:
        async with aggregator(broker, settings) as running:
            await running.send(update(delta_of(0.1), sequence=0))
            await running.version(1)
            before = _passed_over("evaluations")
            await _write(broker, *records, (b"evaluator", good), topic=topic)
            await running.until(lambda: _passed_over("evaluations") == before + count)
            await running.kill()
        found = [event async for event in read_events(broker, running.topics)]
        assert [event.data["metrics"] for event in found if event.kind == "evaluation"] == [{"accuracy": 0.5}]
        assert _passed_over("evaluations") == before + 2 * count
        assert [event for event in await _followed(broker) if event.kind == "evaluation"] == [
            event for event in found if event.kind == "evaluation"
        ]
        async with aggregator(broker, settings) as running:
            await _write(broker, *records, (b"evaluator", best), topic=topic)
            end = await running.task
    assert end is not None
    assert end.reason == "target"


async def test_what_is_no_evaluation_of_the_run_is_counted_and_passed_over_by_everybody() -> None:
    await _are_passed_over_by_everybody(list(_NO_EVALUATIONS.values()))


@pytest.mark.full
@pytest.mark.parametrize("name", _NO_EVALUATIONS)
async def test_each_that_is_none_is_counted_and_passed_over(name: str) -> None:
    await _are_passed_over_by_everybody([_NO_EVALUATIONS[name]])


async def test_evaluations_that_an_older_release_wrote_among_the_events_count() -> None:
    """As long as its aggregator has not been replaced: from then on they come by their own topic."""
    old = _record("evaluation", "evaluator", version=0, metrics={"accuracy": 0.1})
    late = _record("evaluation", "evaluator", version=0, metrics={"accuracy": 0.2})
    async with MemoryBroker() as broker:
        async with aggregator(broker, _SETTINGS) as running:
            await running.version(0)
            await running.kill()
        topics, key = running.topics, b"evaluator"
        (state,) = [record for record in await _records(broker, topics.control) if record.key == b"state"]
        kept = orjson.loads(state.value or b"")
        del kept["evaluations"]
        await broker.delete_topics([topics.evaluations])
        async with broker.producer() as producer:
            await producer.send(topics.control, orjson.dumps(kept), key=b"state")
        await _write(broker, (key, old))
        found, over = list[Event](), Shutdown()

        async def go_over() -> None:
            while not _scores(found):
                await over.wait(0.01)
            async with aggregator(broker, _SETTINGS) as running:
                await running.send(update(delta_of(0.1), sequence=0))
                await running.version(1)
                await _write(broker, (key, late))
                new = _record("evaluation", "evaluator", version=1, metrics={"accuracy": 0.3})
                await _write(broker, (key, new), topic=topics.evaluations)
                while len(_scores(found)) < 2:
                    await over.wait(0.01)
                over.request()

        await run_all(follow_events(broker, topics, found.append, over), go_over())
        assert _scores(found) == [0.1, 0.3]
        assert _scores([event async for event in read_events(broker, topics)]) == [0.1, 0.3]


def _scores(events: list[Event]) -> list[float]:
    found: list[Any] = [event.data for event in events if event.kind == "evaluation"]
    return sorted(data["metrics"]["accuracy"] for data in found)


async def _records(broker: Broker, topic: str) -> list[Record]:
    async with broker.reader([topic], start="earliest") as reader:
        return await reader.poll(1.0)

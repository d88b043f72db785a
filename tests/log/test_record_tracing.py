"""One trace from a client's training to the version it went into, and to what is done with that, on both brokers."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from llmos_stream.broker import Broker, MemoryBroker, Record, Topics
from llmos_stream.log import record_tracing
from llmos_stream.log.record_tracing import SpanContexts
from llmos_stream.runtime import Shutdown
from llmos_stream.telemetry.tracing import HEADER, TraceParent, traceparent_of
from tests.monitoring.federation import run_whole, whole_settings
from tests.roles.aids import aggregator, delta_of, settings_for, update
from tests.telemetry.kept import traced_to

PARENT = TraceParent(1, 2, sampled=True)
SECONDS = 60.0


async def _until_version(broker: Broker, topics: Topics, shutdown: Shutdown, number: int) -> None:
    """Ask for a stop once the version is evaluated."""
    async with asyncio.timeout(SECONDS), broker.reader([topics.evaluations], start="earliest") as reader:
        evaluated = -1
        while evaluated < number:
            evaluated += sum(record.key == b"evaluator" for record in await reader.poll(0.1))
    shutdown.request()


async def _traced_run(broker: Broker, federation: str, folder: Path) -> tuple[Topics, Sequence[ReadableSpan]]:
    kept, topics, shutdown = InMemorySpanExporter(), Topics(federation), Shutdown()
    settings = whole_settings(federation, folder)
    await broker.create_topics(topics.specs(settings.topics))
    with traced_to(kept):
        async with asyncio.TaskGroup() as group:
            group.create_task(_until_version(broker, topics, shutdown, 5))
            group.create_task(run_whole(broker, settings, shutdown))
    return topics, kept.get_finished_spans()


async def test_a_trace_leads_from_training_to_the_version_and_on(
    broker: Broker, federation: str, tmp_path: Path
) -> None:
    topics, spans = await _traced_run(broker, federation, tmp_path)
    by_id = {one.context.span_id: one for one in spans}

    def way(one: ReadableSpan) -> list[str]:
        """The names from here back to where its trace begins."""
        names = [one.name]
        while one.parent is not None:
            before = by_id[one.parent.span_id]
            assert before.context.trace_id == one.context.trace_id
            one = before
            names.append(one.name)
        return names

    update_way = ["client.publish", "client.update"]
    ways = {one.name: way(one) for one in spans if one.name != "version.apply"}
    assert ways["client.train"] == ["client.train", "client.update"]
    assert ways["client.encode"] == ["client.encode", "client.update"]
    assert ways["aggregator.fold"] == ["aggregator.fold", *update_way]
    made = ["aggregator.version", "aggregator.fold", *update_way]
    assert ways["aggregator.version"] == made
    assert ways["evaluator.evaluate"] == ["evaluator.evaluate", *made]
    assert ways["inference.swap"] == ["inference.swap", *made]
    applied = [way(one) for one in spans if one.name == "version.apply"]
    assert ["version.apply", *made] in applied

    versions = [one for one in spans if one.name == "aggregator.version" and one.links]
    assert versions
    for version in versions:
        linked = [by_id[link.context.span_id] for link in version.links]
        assert [one.name for one in linked] == ["aggregator.fold"] * 2
        assert version.parent is not None
        assert version.parent.span_id == linked[-1].context.span_id
    # A client's next update is linked to the version that it was trained on.
    bases = {link.context.span_id for one in spans if one.name == "client.update" for link in one.links}
    assert bases & {one.context.span_id for one in versions}

    async with broker.reader([topics.updates, topics.models], start="earliest") as reader:
        records = await reader.poll(5.0)
    sent = [came for record in records if (came := traceparent_of(record.headers)) is not None]
    assert {by_id[came.span_id].name for came in sent} <= {"client.publish", "aggregator.version"}
    assert sent


async def test_spans_say_who_and_which_and_no_data(tmp_path: Path) -> None:
    async with MemoryBroker() as broker:
        _, spans = await _traced_run(broker, "f", tmp_path)
    said = {name.removeprefix("llmos.") for one in spans for name in one.attributes or {}}
    assert said == {"client_id", "sequence", "base_version", "codec", "bytes", "staleness", "version"}
    assert not [event for one in spans for event in one.events]


async def test_records_have_no_headers_where_nothing_is_traced(tmp_path: Path) -> None:
    shutdown, topics = Shutdown(), Topics("f")
    async with MemoryBroker() as broker:
        settings = whole_settings("f", tmp_path)
        await broker.create_topics(topics.specs(settings.topics))
        async with asyncio.TaskGroup() as group:
            group.create_task(_until_version(broker, topics, shutdown, 2))
            group.create_task(run_whole(broker, settings, shutdown))
        async with broker.reader(topics.names, start="earliest") as reader:
            records = await reader.poll(1.0)
    assert records
    assert {record.headers for record in records} == {()}


async def test_the_same_updates_make_the_same_version_traced_or_not() -> None:
    digests = set()
    ways: list[AbstractContextManager[None]] = [nullcontext(), traced_to(InMemorySpanExporter())]
    for tracing in ways:
        async with MemoryBroker() as broker:
            with tracing:
                async with aggregator(broker, settings_for("f")) as running:
                    await running.send(update(delta_of(0.5)))
                    digests.add((await running.version(1)).head.weights_digest)
    assert len(digests) == 1


@pytest.mark.parametrize(
    "value", [b"", b"\xff\x00", b"00-" + b"0" * 49, b"x" * 10_000, None, PARENT.dump()], ids=range(6)
)
async def test_an_update_counts_whatever_its_header_says(value: bytes | None) -> None:
    kept = InMemorySpanExporter()
    async with MemoryBroker() as broker:
        with traced_to(kept):
            async with aggregator(broker, settings_for("f")) as running, broker.producer() as producer:
                headers = () if value is None else ((HEADER, value),)
                await producer.send_all(running.topics.updates, update(delta_of(1.0)), key=b"a", headers=headers)
                assert (await running.version(1)).head.manifest
    folds = [one for one in kept.get_finished_spans() if one.name == "aggregator.fold"]
    assert [one.parent and one.parent.span_id for one in folds] == [2 if value == PARENT.dump() else None]


def _record(offset: int, header: bytes | None = None) -> Record:
    return Record("t", 0, offset, None, b"", 0, () if header is None else ((HEADER, header),))


def test_a_trail_remembers_a_bounded_number_and_nothing_when_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_tracing, "_MOST", 2)
    trail = SpanContexts()
    trail.note([_record(0, PARENT.dump())])
    assert trail.take(0, 0) is None
    with traced_to(InMemorySpanExporter()):
        trail.note([_record(number, PARENT.dump()) for number in range(4)] + [_record(4), _record(5, b"?")])
    assert [trail.take(0, number) for number in range(6)] == [None, None, PARENT, PARENT, None, None]
    assert trail.take(0, 3) is None

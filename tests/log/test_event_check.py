"""What anybody writes into `<f>.events`: what cannot be of the run is counted and passed over, all else handed on."""

import time
from typing import Any

import orjson
import pytest
from prometheus_client import REGISTRY

from llmos_stream.broker import Broker, MemoryBroker, Topics
from llmos_stream.log.events import follow_events, read_events
from llmos_stream.runtime import Shutdown, run_all
from llmos_stream.types import Event
from tests.roles.aids import aggregator, delta_of, settings_for, update

_DAYS_MS = 3 * 24 * 3_600_000
_SETTINGS = settings_for("watched")
_TOPIC = Topics("watched").events


def _record(kind: str, role: str, later_ms: int = 0, **data: object) -> bytes:
    now = int(time.time() * 1000) + later_ms
    return orjson.dumps({"kind": kind, "role": role, "time_ms": now, "data": data})


_FOREIGN = {
    "a left that another one says": (b"evaluator", _record("client_left", "client", client_id="a")),
    "an evaluation of no version": (b"evaluator", _record("evaluation", "evaluator", version=10**15, metrics={})),
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
    "the future": (b"aggregator", _record("version_published", "aggregator", _DAYS_MS, version=1)),
    "the past": (b"aggregator", _record("version_published", "aggregator", -_DAYS_MS, version=1)),
    "rubbish": (b"x", b"rubbish"),
    "nothing": (b"x", b""),
    "a long text": (b"a", _record("client_left", "client", client_id="a", reason="x" * 900_000)),
}
_HONEST = [
    (b"b", _record("client_joined", "client", client_id="b")),
    (None, _record("client_left", "c", client_id="b")),
]


def _passed_over() -> float:
    return REGISTRY.get_sample_value("llmos_foreign_records_total", {"topic": "events"}) or 0.0


async def _write(broker: Broker, *records: tuple[bytes | None, bytes]) -> None:
    async with broker.producer() as producer:
        for key, value in records:
            await producer.send(_TOPIC, value, key=key)


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
            await _write(broker, (b"evaluator", early))
            await running.send(update(delta_of(0.1), sequence=0))

        await run_all(follow_events(broker, running.topics, take, over), run())
    evaluations: list[Any] = [event.data for event in found if event.kind == "evaluation"]
    assert evaluations == [{"version": 1, "metrics": {"loss": 0.5}}]

"""When the broker does not answer, roles say so, keep trying, go on where they were, and end when they are told to."""

import asyncio
import itertools
import logging
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.broker import Broker, LocalKafka, MemoryBroker, Topics, connect
from llmos_stream.config import Settings
from llmos_stream.errors import BrokerUnavailable, Fenced
from llmos_stream.log import RunEnd, stream
from llmos_stream.log.events import follow_events
from llmos_stream.log.topics import missing_topics
from llmos_stream.roles import evaluator
from llmos_stream.roles.aggregator import initial_of, run_aggregator
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.roles.evaluator import run_evaluator
from llmos_stream.runtime import Offload, Shutdown, retry, run_all
from llmos_stream.runtime.retry import keep_trying, until_stop
from llmos_stream.testing import Call, FaultyBroker
from llmos_stream.training import load_task
from llmos_stream.types import Event
from llmos_stream.wire import load_event
from tests.conftest import KafkaNode
from tests.federation import read_versions
from tests.roles.aids import settings_for

pytestmark = pytest.mark.timeout(240)

_PATIENCE_SECONDS = 90.0
_END_SECONDS = 30.0
"""How long a role may take to end while nobody answers: what a stop leaves the broker, and closing what is open.

That is 12 s at most. Who waits for the broker's answer waits for 40."""


# The loop itself


async def test_it_tries_again_until_it_works(caplog: pytest.LogCaptureFixture) -> None:
    tries = 0

    async def work() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise BrokerUnavailable("nobody there")
        return "done"

    assert await keep_trying(work, Shutdown(), "trying again") == "done"
    assert caplog.messages == ["nobody there; trying again in 0.5 s", "nobody there; trying again in 1.0 s"]


async def test_what_a_repeat_would_not_mend_is_raised_at_once() -> None:
    async def work() -> None:
        raise Fenced("a newer one")

    with pytest.raises(Fenced):
        await keep_trying(work, Shutdown(), "trying again")


async def test_a_stop_ends_the_pause() -> None:
    shutdown = Shutdown()

    async def work() -> str:
        asyncio.get_running_loop().call_soon(shutdown.request)
        raise BrokerUnavailable("nobody there")

    assert await keep_trying(work, shutdown, "trying again") is None


async def test_a_stop_leaves_the_broker_a_few_seconds() -> None:
    shutdown, answered = Shutdown(), asyncio.Event()
    asyncio.get_running_loop().call_later(0.05, shutdown.request)
    with pytest.raises(BrokerUnavailable, match="that a stop leaves"):
        await until_stop(answered.wait(), shutdown, 0.05)
    answered.set()
    assert await until_stop(answered.wait(), shutdown)


# A log that breaks off


class Breaking:
    """Breaks readers and producers off now and then, as those of a Kafka are that is cut off.

    One that broke off stays so; what it was asked for may or may not have been done.
    """

    def __init__(self, chance: float) -> None:
        self.chance = chance
        self.broken = 0
        self._random = random.Random(1)  # noqa: S311  no secret is made of it
        self._lost: set[object] = set()

    async def __call__(self, call: Call) -> Any:
        if call.operation not in {"open", "poll", "lag", "send", "send_all"}:
            return await call.proceed()
        if call.target in self._lost or self._breaks():
            self._lost.add(call.target)
            if not self._breaks():
                await call.proceed()
            raise BrokerUnavailable("broken off")
        return await call.proceed()

    def _breaks(self) -> bool:
        broken = self._random.random() < self.chance
        self.broken += broken
        return broken


@pytest.mark.parametrize("codec", ["int8", "topk"])
async def test_a_log_that_breaks_off_again_and_again(
    federation: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    monkeypatch.setattr(retry, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(retry, "_LAST_PAUSE_SECONDS", 0.01)
    settings = settings_for(
        federation,
        task={"entry": "blobs", "shards": 2},
        codec={"name": codec},
        client={"wait_seconds": 0.05, "id": "c"},
        stop={"max_versions": 25},
    )
    broker = MemoryBroker()
    breaking = Breaking(0.07)
    through = FaultyBroker(broker, breaking)
    events: list[Event] = []
    logged: list[Event] = []
    stop, over, looked = Shutdown(), Shutdown(), asyncio.Event()

    async def first_look(*where: Any) -> list[str]:
        missing = await missing_topics(*where)
        looked.set()
        return missing

    async def aggregate(offload: Offload) -> RunEnd | None:
        await looked.wait()  # the evaluator is promised the first version only where it was there before the topics
        return await run_aggregator(broker, settings, lambda: initial_of(task, settings), offload, stop)

    monkeypatch.setattr(evaluator, "missing_topics", first_look)
    task = load_task(settings.task, settings.client)
    async with Offload(2) as offload:

        async def roles() -> list[Any]:
            with ClientState("c", tmp_path) as state:
                ended = await run_all(
                    aggregate(offload),
                    run_client(through, settings, task, state, offload, stop),
                    run_evaluator(through, settings, task, offload, stop),
                )
                assert state.unsent() is None
            breaking.chance = 0.0
            async with broker.reader([f"{federation}.events", f"{federation}.evaluations"], start="earliest") as reader:
                while await reader.lag():
                    logged.extend(load_event(record.value or b"") for record in await reader.poll(1.0, 10_000))
            while len(events) < len(logged):
                await over.wait(0.01)
            over.request()
            return ended

        (end, updates, last), _ = await run_all(
            roles(), follow_events(through, Topics(settings.federation.name), events.append, over)
        )
        async with broker.reader([f"{federation}.models"], start="earliest") as reader:
            versions = [version async for version in read_versions(reader, settings.wire)]
    assert breaking.broken > 5

    assert [version.head.number for version in versions] == list(range(26))
    assert end.version == last.version == 25
    folded = [item.sequence for version in versions for item in version.head.manifest]
    assert len(folded) == len(set(folded)) == 25
    # An event that was written although nobody said so is in the log twice; an update has one sequence all the same.
    sent = {int(str(event.data["sequence"])) for event in events if event.kind == "update_sent"}
    assert sent >= set(folded)
    assert updates == len(sent) == max(sent) - min(sent) + 1
    evaluated = [event.data["version"] for event in events if (event.kind, event.role) == ("evaluation", "evaluator")]
    assert [number for number, _ in itertools.groupby(evaluated)] == list(range(26))
    for of_topic in (True, False):  # each handed on once, in the order of its topic, none left out
        expected = [event for event in logged if (event.kind == "evaluation") is of_topic]
        assert [event for event in events if (event.kind == "evaluation") is of_topic] == expected


# A Kafka that goes and comes back


def _settings(federation: str, kafka: KafkaNode, **sections: dict[str, Any]) -> Settings:
    given: dict[str, dict[str, Any]] = {
        "broker": {
            "bootstrap_servers": kafka.bootstrap_servers,
            "connect_timeout_seconds": 1.0,
            "request_timeout_seconds": 3.0,
        },
        "task": {"entry": "blobs", "shards": 2},
        "aggregation": {"buffer_size": 1},
        "codec": {"name": "int8"},
        "client": {"lr": 0.1, "wait_seconds": 0.3, "min_train_seconds": 0.05},
        "stop": {"max_versions": None},
    }
    for section, fields in sections.items():
        given[section] = given.get(section, {}) | fields
    return settings_for(federation, **given)


class Roles:
    """A client, an evaluator, a monitor and an aggregator, each with a stop of its own."""

    def __init__(self, broker: Broker, settings: Settings, folder: Path | None = None) -> None:
        self.broker, self.settings, self.folder = broker, settings, folder
        self.events: list[Event] = []
        self.shutdowns = {name: Shutdown() for name in ("aggregator", "client", "evaluator", "monitor")}
        self.running: dict[str, asyncio.Task[Any]] = {}
        self.batches_made = 0

    def start(self, offload: Offload) -> None:
        settings, broker = self.settings, self.broker
        task = load_task(settings.task, settings.client)
        make_batches = task.train_batches

        def counted(shard: int = 0) -> Any:
            self.batches_made += 1
            return make_batches(shard)

        task.train_batches = counted  # type: ignore[method-assign]
        stop = self.shutdowns
        state = ClientState("c", self.folder)
        roles = {
            "aggregator": run_aggregator(
                broker, settings, lambda: initial_of(task, settings), offload, stop["aggregator"]
            ),
            "client": run_client(broker, settings, task, state, offload, stop["client"]),
            "evaluator": run_evaluator(broker, settings, task, offload, stop["evaluator"]),
            "monitor": follow_events(broker, Topics(settings.federation.name), self.events.append, stop["monitor"]),
        }
        self.running = {name: asyncio.create_task(role) for name, role in roles.items()}

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a condition; fails when a role ends before it holds."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not condition():
            assert time.monotonic() < deadline
            done, _ = await asyncio.wait(self.running.values(), timeout=0.02, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            assert not done

    async def end(self, *names: str) -> float:
        """Ask these roles (all) to stop; returns how long that took."""
        begun = time.monotonic()
        chosen = names or tuple(self.shutdowns)
        for name in chosen:
            self.shutdowns[name].request()
        await asyncio.gather(*(self.running.pop(name) for name in chosen))
        return time.monotonic() - begun


def _said(caplog: pytest.LogCaptureFixture, text: str, since: int = 0) -> bool:
    return any(text in message for message in caplog.messages[since:])


@pytest.fixture
def _impatient_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "QUIET_SECONDS", 0.3)


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
@pytest.mark.usefixtures("_impatient_readers")
async def test_a_kafka_that_is_gone_for_long_costs_time_and_nothing_else(
    own: LocalKafka, kafka: KafkaNode, federation: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "llmos_stream")
    settings = _settings(federation, kafka)
    async with connect(kafka.settings()) as broker, Offload(2) as offload:
        roles = Roles(connect(settings.broker), settings, tmp_path)
        roles.start(offload)
        await roles.until(lambda: len(roles.of("evaluation")) > 2)
        await asyncio.to_thread(own.kill)
        # Long enough that every role has noticed and tried in vain.
        for said in (
            "sending again in 1.0 s",
            "looking for versions again in 1.0 s",
            "following the events again in 1.0 s",
        ):
            await roles.until(lambda said=said: _said(caplog, said))  # type: ignore[misc]
        before = len(roles.of("evaluation"))
        await asyncio.to_thread(own.start)
        await roles.until(lambda: len(roles.of("evaluation")) > before + 5)
        for name in ("client", "evaluator", "monitor", "aggregator"):
            await roles.end(name)
        async with broker.reader([f"{federation}.models"], start="earliest") as reader:
            versions = [version async for version in read_versions(reader, settings.wire)]

    assert [version.head.number for version in versions] == list(range(len(versions)))
    folded = [item.sequence for version in versions for item in version.head.manifest]
    assert len(folded) == len(set(folded))
    sent = [event.data["sequence"] for event in roles.of("update_sent")]
    assert len(sent) == len(set(sent))
    evaluated = [int(str(one.data["version"])) for one in roles.of("evaluation") if one.role == "evaluator"]
    assert evaluated == list(range(evaluated[0], evaluated[0] + len(evaluated)))  # each once, none left out
    assert len(roles.of("client_joined")) == 1
    assert roles.batches_made == 1  # the order of the data went on


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
@pytest.mark.parametrize("noticed", [False, True], ids=["just gone", "gone for long"])
@pytest.mark.usefixtures("_impatient_readers")
async def test_a_stop_ends_every_role_while_nobody_answers(
    own: LocalKafka,
    kafka: KafkaNode,
    federation: str,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    noticed: bool,
) -> None:
    timeouts = {"request_timeout_seconds": 3.0} if noticed else {"request_timeout_seconds": 40.0}
    settings = _settings(federation, kafka, broker={**_settings(federation, kafka).broker.model_dump(), **timeouts})
    async with Offload(2) as offload:
        roles = Roles(connect(settings.broker), settings, tmp_path)
        roles.start(offload)
        await roles.until(lambda: len(roles.of("evaluation")) > 1)
        await asyncio.to_thread(own.kill)
        if noticed:
            # A client that had just been cut off joins again, one that was in sends again.
            await roles.until(lambda: _said(caplog, "sending again") or _said(caplog, "joining again"))
            for said in ("looking for versions again", "following the events again"):
                await roles.until(lambda said=said: _said(caplog, said))  # type: ignore[misc]
        took = {name: await roles.end(name) for name in ("client", "evaluator", "monitor", "aggregator")}
        await asyncio.to_thread(own.start)
    assert max(took.values()) < _END_SECONDS, took

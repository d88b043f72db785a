"""A client's whole life against the clock, on the in-process broker: hours of it, without waiting for any of them.

The aggregator is a script: it writes what one would write, at the second that the scenario says.
"""

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from llmos_stream.broker import MemoryBroker, Topics
from llmos_stream.codec import Layout
from llmos_stream.config import Settings
from llmos_stream.log import Pointer, RunEnd
from llmos_stream.log.versions import Origin, encode_version
from llmos_stream.roles.client import ClientState, run_client
from llmos_stream.runtime import Offload, Shutdown, run_while
from llmos_stream.testing import Call, FaultyBroker, LoopClock, run_in_virtual_time
from llmos_stream.training import load_task, local, shared_tensors
from llmos_stream.types import ClientOrder, UpdateHead
from llmos_stream.wire import load_event, message_id, pack_prelude, read_chunk, split, unpack_prelude
from llmos_stream.wire.control import (
    AGGREGATOR,
    LATEST,
    PAUSED,
    RUN,
    Leader,
    client_key,
    dump_order,
    dump_paused,
    dump_run_end,
    dump_setting,
)
from tests.roles.aids import settings_for

Step = tuple[float, int | Leader | bool | RunEnd | ClientOrder | str]
"""When, and what: a version, a pace, a pause, the end of the run, an operator's order, or a stop of the client."""


def _settings(**client: Any) -> Settings:
    given = {"id": "c", "wait_seconds": 4.0, "min_train_seconds": 1.0, "speed": 0.5, **client}
    return settings_for("life", task={"entry": "noop:100"}, client=given, staleness={"maximum": 3})


def _pace(seconds: float) -> Leader:
    return Leader(term=1, instance="script", pace_seconds=seconds)


class Life:
    """One client and one script, under virtual time. Times are seconds since the client's start."""

    def __init__(
        self, settings: Settings, folder: Path | None = None, link: Callable[[], Awaitable[object]] | None = None
    ) -> None:
        """`link` is awaited before each update goes to the broker."""
        self.settings, self.folder, self._link = settings, folder, link
        self.topics = Topics(settings.federation.name)
        self.stop = Shutdown()
        self._written = -1
        self.sent: list[tuple[float, int]] = []
        self.heads: list[UpdateHead] = []
        self.left: list[tuple[float, str]] = []

    def run(self, script: Sequence[Step]) -> None:
        run_in_virtual_time(lambda clock: self._run(clock, script))

    async def _run(self, clock: LoopClock, script: Sequence[Step]) -> None:
        broker = MemoryBroker(clock=clock.monotonic)
        await broker.create_topics(self.topics.specs(self.settings.topics))
        task = load_task(self.settings.task, self.settings.client)
        async with Offload(1) as offload:
            with ClientState("c", self.folder) as state:
                client = run_client(
                    FaultyBroker(broker, self._carry), self.settings, task, state, offload, self.stop, clock
                )
                await run_while(client, self._act(broker, clock, script))
        async with broker.reader([self.topics.updates, self.topics.events], start="earliest") as reader:
            for record in await reader.poll(0):
                if record.topic == self.topics.updates:
                    prelude = unpack_prelude(read_chunk(record.value or b"").body)
                    assert prelude is not None
                    assert isinstance(prelude.head, UpdateHead)
                    self.heads.append(prelude.head)
                    self.sent.append((record.timestamp_ms / 1000, prelude.head.base_version))
                elif (event := load_event(record.value or b"")).kind == "client_left":
                    self.left.append((record.timestamp_ms / 1000, str(event.data["reason"])))

    async def _carry(self, call: Call) -> object:
        if self._link is not None and call.operation == "send_all" and self.topics.updates in call.topics:
            await self._link()
        return await call.proceed()

    async def _act(self, broker: MemoryBroker, clock: LoopClock, script: Sequence[Step]) -> None:
        async with broker.producer() as producer:
            for at, what in script:
                await clock.sleep(at - clock.monotonic())
                control = self.topics.control
                match what:
                    case bool():
                        await producer.send(control, dump_paused(what, clock.time_ms()), key=PAUSED)
                    case int():
                        await producer.send(control, await self._versions(producer, what), key=LATEST)
                    case Leader():
                        await producer.send(control, dump_setting(what), key=AGGREGATOR)
                    case ClientOrder():
                        await producer.send(control, dump_order(what), key=client_key("c"))
                    case RunEnd():
                        await producer.send(control, dump_run_end(what), key=RUN)
                    case _:
                        self.stop.request()

    async def _versions(self, producer: Any, number: int) -> bytes:
        """Write the versions up to `number`; the pointer to it."""
        while self._written < number - 1:
            self._written += 1
            await self._version(producer, self._written)
        self._written = number
        return await self._version(producer, number)

    async def _version(self, producer: Any, number: int) -> bytes:
        tensors = shared_tensors(load_task(self.settings.task, self.settings.client).model(), "all")
        layout = Layout.of(tensors)
        rule = {"staleness": {"maximum": self.settings.staleness.maximum}}
        origin = Origin(number - 1 if number else None, (), rule, 0)
        head, parts = encode_version(number, layout.flatten(tensors), layout, origin)
        records = split(
            pack_prelude(head),
            parts,
            payload_size=head.payload_size,
            message_id=message_id("script", number),
            chunk_bytes=1 << 16,
        )
        sent = await producer.send_all(self.topics.models, records, key=str(number).encode(), partition=0)
        return dump_setting(Pointer(number, sent.partition, sent.offset))


@pytest.fixture(autouse=True)
def _training_takes_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as anybody measures: by a real clock it would take what it likes."""
    monkeypatch.setattr(local, "perf_counter", lambda: 0.0)


def test_a_life_of_waiting_backing_off_pace_and_pause() -> None:
    life = Life(_settings(join_delay_seconds=3.0, max_updates=9))
    life.run(
        [
            (10, 0),  # trains from 10 to 12, then waits 4 s, 8 s, 16 s for a newer version
            (40, 1),
            (43, 2),
            (46, _pace(10.0)),
            (46, 3),
            (57, 4),
            (67, True),
            (68, 5),
            (100, False),
        ]
    )
    assert life.sent == [(12, 0), (18, 0), (28, 0), (42, 1), (45, 2), (55, 3), (65, 4), (102, 5), (112, 5)]
    ((left_at, reason),) = life.left
    assert (round(left_at), reason) == (113, "client.max_updates reached")  # it listens for what became of the last


def _slow(seconds: float) -> ClientOrder:
    return ClientOrder(settings={"client.pace_seconds": seconds})


def _end() -> RunEnd:
    return RunEnd("target", "accuracy 0.9", 3)


@pytest.mark.parametrize(
    ("script", "sent", "left"),
    [
        pytest.param(
            [(0, 0), (3, 1), (4, _pace(30.0)), (35, _end())],
            [(2, 0), (32, 1)],
            (35, "run ended: target"),
            id="a pace that comes while it trains counts for what it trains",
        ),
        pytest.param(
            [(0, 0), (3, 1), (4, _pace(30.0)), (10, _pace(0.0)), (11, _end())],
            [(2, 0), (10, 1)],
            (11, "run ended: target"),
            id="and so does one that is taken back",
        ),
        pytest.param(
            [(0, 0), (3, 1), (4, _slow(30.0)), (35, _end())],
            [(2, 0), (32, 1)],
            (35, "run ended: target"),
            id="an operator's pace counts as well",
        ),
        pytest.param(
            [(0, 0), (3, 1), (4, _slow(30.0)), (5, _pace(20.0)), (10, ClientOrder()), (30, _end())],
            [(2, 0), (22, 1)],
            (30, "run ended: target"),
            id="the longer one holds, and the operator's until it is taken back",
        ),
        pytest.param(
            [(0, 0), (1, True), (3, 1), (70, False), (75, _end())],
            [(2, 0), (72, 1)],
            (75, "run ended: target"),
            id="what was trained before a pause is sent",
        ),
        pytest.param([(0, 0), (1, _end())], [], (1, "run ended: target"), id="the end comes while it trains"),
        pytest.param([(0, 0), (5, "stop")], [(2, 0)], (5, "stopped"), id="a stop comes while it waits"),
        pytest.param([(3, "stop")], [], (3, "stopped"), id="a stop comes before the first version"),
        pytest.param(
            [(0, 0), (1, 4), (5, "stop")], [(4, 4)], (5, "stopped"), id="what is too old is not sent, but one anew"
        ),
        pytest.param(
            [(0, 0), (1000, "stop")],
            [(2, 0), (8, 0), (18, 0), (36, 0), (70, 0), (136, 0), (266, 0), (524, 0), (782, 0)],
            (1000, "stopped"),
            id="where nobody folds it waits twice as long each time, but not for ever longer",
        ),
    ],
)
def test_what_comes_between(script: list[Step], sent: list[tuple[float, int]], left: tuple[float, str]) -> None:
    life = Life(_settings())
    life.run(script)
    assert life.sent == sent
    ((at, reason),) = life.left
    assert reason == left[1]
    assert left[0] <= at <= left[0] + 0.5  # a stop is looked for twice a second

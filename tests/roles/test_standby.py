"""Who leads, on both brokers: a standby waits, takes over, and the one it took over from stops."""

import asyncio
import logging
from time import monotonic
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, MemoryBroker, Topics, Transaction, connect
from llmos_stream.errors import Fenced, TransactionAborted
from llmos_stream.log import ControlView, RunEnd
from llmos_stream.roles.aggregator import lifecycle as aggregation
from llmos_stream.roles.aggregator.loop import Folding
from llmos_stream.roles.aggregator.publisher import Publisher
from llmos_stream.roles.aggregator.recovery import fetch_version
from llmos_stream.runtime.clock import SystemClock
from llmos_stream.testing import Call, FaultyBroker
from llmos_stream.types import Event
from tests.conftest import KafkaNode
from tests.roles.aids import aggregator, control_of, delta_of, settings_for, update


class _HeldClock(SystemClock):
    """Time stands still until `release`: a standby waits with all its patience, however slow the machine is."""

    def __init__(self) -> None:
        self._held = True
        self._skipped = monotonic()

    def release(self) -> None:
        self._held = False
        self._skipped = monotonic()

    def monotonic(self) -> float:
        return 0.0 if self._held else monotonic() - self._skipped


async def _beats(broker: Broker, federation: str, count: int) -> None:
    """Wait until the leader has been heard so often from now on."""
    async with broker.reader([Topics(federation).control], start="latest") as reader:
        control = ControlView(reader)
        while control.beats < count:
            await control.poll(0.1)


async def test_a_second_one_stands_by_until_the_first_leaves(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregator={"takeover_seconds": 600.0})
    async with aggregator(broker, settings) as first:
        await first.send(update(delta_of(1.0)))
        await first.version(1)
        async with aggregator(broker, settings) as second:
            await first.send(update(delta_of(1.0), sequence=1, base_version=1))
            await first.version(2)
            await _beats(broker, federation, 3)
            leader = (await control_of(first)).leader
            assert leader is not None
            assert (leader.term, leader.left) == (1, False)
            assert await first.stop() is None
            # At once: the first said that it leaves.
            await second.send(update(delta_of(1.0), sequence=2, base_version=2))
            version = await second.version(3)
            leader = (await control_of(second)).leader
    assert leader is not None
    assert leader.term == 2
    assert torch.equal(version.weights, delta_of(3.0))


async def test_it_takes_over_from_one_that_died(broker: Broker, federation: str) -> None:
    settings = settings_for(federation, aggregation={"buffer_size": 2})
    clock = _HeldClock()
    async with aggregator(broker, settings) as first:
        await first.version(0)  # it leads
        async with aggregator(broker, settings, clock) as second:
            for sequence in range(3):  # the third waits in the buffer of the one that dies
                await first.send(update(delta_of(1.0), sequence=sequence))
            await first.version(1)
            await first.kill()
            clock.release()
            await second.send(update(delta_of(1.0), sequence=3, base_version=1))
            version = await second.version(2)
    assert [item.sequence for item in version.head.manifest] == [2, 3]
    assert torch.equal(version.weights, delta_of(2.0))


async def test_it_takes_over_from_one_that_hangs_which_then_stops(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a single update: the one that hung hears of its successor in the log."""
    observe = Folding._observe
    hung: list[Folding] = []

    async def hangs_once(self: Folding) -> RunEnd | None:
        if not hung:
            hung.append(self)
        if self in hung:
            await asyncio.Event().wait()
        return await observe(self)

    monkeypatch.setattr(Folding, "_observe", hangs_once)
    settings = settings_for(federation, broker={"transaction_timeout_seconds": 0.2})
    async with aggregator(broker, settings) as first:
        await first.version(0)
        async with aggregator(broker, settings) as second:
            await asyncio.wait([first.task])
            with pytest.raises(Fenced, match="taken over"):
                first.task.result()
            await second.send(update(delta_of(1.0)))
            await second.version(1)


async def test_a_long_recovery_is_no_hang(broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is heard all the while: a standby that took over would take as long, and be taken over from in turn."""
    settings = settings_for(federation, broker={"transaction_timeout_seconds": 0.05})
    async with aggregator(broker, settings) as running:
        await running.version(0)

    async def long(*given: Any) -> Any:
        await _beats(broker, federation, 8)  # beats come every 0.1 s, and the loop would count as hung after 0.1 s
        return await fetch_version(*given)

    monkeypatch.setattr(aggregation, "fetch_version", long)
    async with aggregator(broker, settings) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)


async def test_a_leader_is_heard_while_it_opens_what_it_reads(broker: Broker, federation: str) -> None:
    """On a broker that is slow to answer a standby would take over, and be as slow."""

    async def slow(call: Call) -> Any:
        if call.operation == "open" and call.topics == (Topics(federation).updates,):
            await _beats(broker, federation, 3)
        return await call.proceed()

    async with aggregator(FaultyBroker(broker, slow), settings_for(federation)) as running:
        await running.send(update(delta_of(1.0)))
        await running.version(1)


async def test_a_machine_that_stood_still_is_no_silence(federation: str) -> None:
    """Leader and standby on it stood still together: the time in which nobody could speak does not count."""
    broker, settings = MemoryBroker(), settings_for(federation)
    async with aggregator(broker, settings) as first, aggregator(broker, settings) as second:
        await _beats(broker, federation, 3)
        until = monotonic() + 1.5 * settings.aggregator.takeover_seconds
        while monotonic() < until:
            pass  # nothing in this process gets to run
        await _beats(broker, federation, 3)
        leader = (await control_of(first)).leader
        assert not first.task.done()
        assert not second.task.done()
    assert leader is not None
    assert leader.term == 1


async def test_of_two_that_stand_by_one_leads(broker: Broker, federation: str) -> None:
    # Of the two one goes on standing by: a real Kafka has more time to let the other one be heard.
    patience = 1.0 if isinstance(broker, MemoryBroker) else 8.0
    settings = settings_for(federation, aggregator={"takeover_seconds": patience})
    async with aggregator(broker, settings) as first:
        await first.version(0)  # it leads
        async with aggregator(broker, settings) as a, aggregator(broker, settings) as b:
            await first.send(update(delta_of(1.0)))
            await first.version(1)
            await first.kill()
            await a.send(update(delta_of(1.0), sequence=1, base_version=1))
            version = await a.version(2)
            await _beats(broker, federation, 5)
            assert not a.task.done()
            assert not b.task.done()
    assert torch.equal(version.weights, delta_of(2.0))


async def test_the_end_of_the_run_ends_the_standby_too(
    broker: Broker, federation: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    settings = settings_for(federation, stop={"max_versions": 1})
    async with aggregator(broker, settings) as first:
        await first.version(0)  # it leads
        async with aggregator(broker, settings, _HeldClock()) as second:
            await second.until(lambda: any("standing by" in message for message in caplog.messages))
            await first.send(update(delta_of(1.0)))
            end = await first.task
            assert end is not None
            assert await second.task == end


@pytest.mark.kafka
async def test_a_transaction_that_took_too_long_is_no_takeover(
    kafka: KafkaNode, federation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka fences its writer, or calls its state invalid. Nobody newer is there, so this one goes on."""
    dawdled: list[Exception] = []
    write = Publisher._write_waiting

    async def dawdles_once(
        self: Publisher, transaction: Transaction, events: list[Event], offsets: dict[object, int]
    ) -> None:
        while not dawdled:
            try:
                await transaction.send(self._topics.events, b"{}", key=b"slow")
            except Exception as error:
                dawdled.append(error)
                raise
        await write(self, transaction, events, offsets)  # type: ignore[arg-type]

    impatient = kafka.settings().model_copy(update={"transaction_timeout_seconds": 1.0})
    settings = settings_for(federation)
    async with connect(impatient) as broker, aggregator(broker, settings) as running:
        await running.version(0)
        monkeypatch.setattr(Publisher, "_write_waiting", dawdles_once)
        await running.send(update(delta_of(1.0)))
        version = await running.version(1)
    assert isinstance(dawdled[0], Fenced | TransactionAborted)
    assert [item.sequence for item in version.head.manifest] == [0]

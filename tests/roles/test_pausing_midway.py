"""A pause in the middle of a poll, on both brokers: it takes effect at once, and every update counts once."""

import asyncio
import logging
from contextlib import AsyncExitStack
from typing import Any

import pytest
import torch

from llmos_stream.broker import Broker, Topics
from llmos_stream.config import Settings
from llmos_stream.log import ControlView, Pointer, control
from llmos_stream.log.pausing import set_paused
from llmos_stream.roles.aggregator.decoding import Decoder
from llmos_stream.roles.aggregator.publisher import Outgoing, Publisher
from llmos_stream.testing import RunningFederation
from llmos_stream.types import VersionHead
from llmos_stream.wire.control import load_paused
from tests.federation import read_versions
from tests.roles.aids import NUMEL, aggregator, delta_of, settings_for, update
from tests.roles.test_pausing import _hear, _logged

_UPDATES = 30
_BUFFER = 3
_LAST = _UPDATES // _BUFFER
_PAUSED_AT = 4
_TAKEN = _PAUSED_AT * _BUFFER + 2  # two of these were sent twice
_BEATS = 5


def _settings(federation: str) -> Settings:
    aggregation = {"buffer_size": _BUFFER}
    return settings_for(federation, aggregation=aggregation, topics={"updates_partitions": 1})


async def _send_all(broker: Broker, settings: Settings) -> None:
    """Many small updates, some of them twice and some in several chunks, before anybody reads."""
    topics = Topics(settings.federation.name)
    await broker.create_topics(topics.specs(settings.topics))
    async with broker.producer() as producer:
        for sequence in range(_UPDATES):
            delta = torch.randn(NUMEL, generator=torch.Generator().manual_seed(sequence))
            records = update(delta, 1 << 16 if sequence % 2 else 64, sequence=sequence)
            await producer.send_all(topics.updates, records * (2 if sequence % 7 == 0 else 1), key=b"a")


class _Pause:
    """Pauses the federation while a version is being committed, which goes on once the aggregator has heard it."""

    def __init__(self, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
        self.heard = asyncio.Event()
        commit = Publisher.commit

        def load(value: Any) -> bool:
            paused = load_paused(value)
            if paused:
                self.heard.set()
            return paused

        async def held(publisher: Publisher, offsets: Any, version: Outgoing | None = None, end: Any = None) -> Any:
            if version is not None and version.encoded.head.number == _PAUSED_AT and not self.heard.is_set():
                await set_paused(broker, Topics(settings.federation.name), True)
                await self.heard.wait()
            return await commit(publisher, offsets, version, end)

        monkeypatch.setattr(control, "load_paused", load)
        monkeypatch.setattr(Publisher, "commit", held)


async def _newest(running: RunningFederation) -> Pointer | None:
    """The newest version, some beats later."""
    async with running.broker.reader([running.topics.control], start="earliest") as reader:
        view = ControlView(reader)
        await view.catch_up()
        await _hear(reader, view, _BEATS)
        return view.latest


async def _versions(running: RunningFederation) -> list[VersionHead]:
    await running.version(_LAST)
    async with running.broker.reader([running.topics.models], start="earliest") as reader:
        return [version.head async for version in read_versions(reader, running.settings.wire)]


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The updates that are decoded, as they are."""
    found: list[object] = []
    decode = Decoder.decode

    async def noted(self: Decoder, message: Any) -> Any:
        found.append(message)
        return await decode(self, message)

    monkeypatch.setattr(Decoder, "decode", noted)
    return found


@pytest.mark.parametrize("meanwhile", ["nothing", "stop", "kill", "takeover"])
async def test_a_pause_takes_effect_at_once_and_loses_nothing(
    broker: Broker,
    federation: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    decoded: list[object],
    meanwhile: str,
) -> None:
    caplog.set_level(logging.INFO)
    undisturbed, settings = _settings(f"{federation}-u"), _settings(federation)
    await _send_all(broker, undisturbed)
    async with aggregator(broker, undisturbed) as running:
        expected = await _versions(running)
    decoded.clear()
    await _send_all(broker, settings)
    _Pause(broker, settings, monkeypatch)
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(aggregator(broker, settings))
        await _logged(caplog, "paused: nothing is folded")
        assert (newest := await _newest(running)) is not None
        assert newest.version == _PAUSED_AT
        assert _TAKEN <= len(decoded) <= _TAKEN + 1
        if meanwhile != "nothing":
            caplog.clear()
            if meanwhile == "takeover":
                other = await stack.enter_async_context(aggregator(broker, settings))
                await running.kill()
            else:
                await (running.kill() if meanwhile == "kill" else _stop(running))
                other = await stack.enter_async_context(aggregator(broker, settings))
            running = other
            await _logged(caplog, "paused: nothing is folded")
            assert (newest := await _newest(running)) is not None
            assert newest.version == _PAUSED_AT
        await set_paused(broker, Topics(settings.federation.name), False)
        found = await _versions(running)
    sequences = [item.sequence for head in found for item in head.manifest]
    assert sequences == list(range(_UPDATES))
    assert [head.weights_digest for head in found] == [head.weights_digest for head in expected]


async def _stop(running: RunningFederation) -> None:
    running.federation.shutdown.request()
    await asyncio.wait([running.task])


async def test_an_update_that_comes_once_the_pause_was_heard_waits(
    broker: Broker, federation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the aggregator was waiting for one when it heard."""
    settings = settings_for(federation)
    async with aggregator(broker, settings) as running:
        await running.version(0)
        pause = _Pause(broker, settings, monkeypatch)
        async with broker.producer() as producer:
            (record,) = update(delta_of(1.0))
            await set_paused(broker, Topics(settings.federation.name), True)
            await pause.heard.wait()
            await producer.send(running.topics.updates, record, key=b"a")
        assert (newest := await _newest(running)) is not None
        assert newest.version == 0
        await set_paused(broker, Topics(settings.federation.name), False)
        await running.version(1)

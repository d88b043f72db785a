"""`llmos-stream topics delete` on a federation that is live."""

import argparse
import contextlib
import io

import pytest

from llmos_stream.broker import MemoryBroker
from llmos_stream.cli.topics import _delete
from llmos_stream.errors import ConfigError, LlmosError
from llmos_stream.wire.control import Leader
from tests.roles.aids import aggregator, settings_for


def _given(*, yes: bool, force: bool = False) -> argparse.Namespace:
    return argparse.Namespace(action="delete", yes=yes, force=force, json=True)


async def test_who_leads_is_said_and_yes_alone_does_not_delete(
    federation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broker, settings = MemoryBroker(), settings_for(federation, aggregator={"takeover_seconds": 60.0})
    monkeypatch.setattr("llmos_stream.broker.connect", lambda _: contextlib.nullcontext(broker))
    async with aggregator(broker, settings) as running:
        await running.version(0)
        with pytest.raises(
            ConfigError, match=rf"{federation} is live: an aggregator leads it .*, term 1.*--yes --force"
        ):
            await _delete(_given(yes=True), settings)
        terminal = io.StringIO("no\n")
        monkeypatch.setattr(terminal, "isatty", lambda: True)
        monkeypatch.setattr("sys.stdin", terminal)
        with pytest.raises(LlmosError, match="nothing was changed"):
            await _delete(_given(yes=False), settings)
        assert "is live: an aggregator leads it" in " ".join(capsys.readouterr().err.split())
        assert len(await broker.list_topics(f"{federation}.")) == 8

    async def leads(*_: object) -> Leader:
        return Leader(1, "another")

    monkeypatch.setattr("llmos_stream.log.liveness.living_leader", leads)
    assert await _delete(_given(yes=True, force=True), settings) == 0
    assert await broker.list_topics(f"{federation}.") == []


async def test_one_that_was_left_in_order_needs_no_force(federation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, settings = MemoryBroker(), settings_for(federation)
    monkeypatch.setattr("llmos_stream.broker.connect", lambda _: contextlib.nullcontext(broker))
    async with aggregator(broker, settings) as running:
        await running.version(0)
    assert await _delete(_given(yes=True), settings) == 0
    assert await broker.list_topics(f"{federation}.") == []

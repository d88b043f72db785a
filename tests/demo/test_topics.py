"""What `llmos-stream demo` on a Kafka says of topics that were there before it."""

import contextlib
from pathlib import Path

import pytest

from llmos_stream.broker import MemoryBroker, TopicSpec
from llmos_stream.config import load
from llmos_stream.demo import ClientMix, make_scenario, processes, run_processes
from llmos_stream.errors import LlmosError
from llmos_stream.runtime import Shutdown


async def test_it_says_itself_what_is_wrong_with_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The aggregator would say it into a file that nobody reads."""
    broker = MemoryBroker()
    await broker.create_topics([TopicSpec("digits.control", 1, {"cleanup.policy": "delete"})])
    monkeypatch.setattr(processes, "connect", lambda _: contextlib.nullcontext(broker))

    async def start(*_: object, **__: object) -> None:
        raise LlmosError("nothing is started here")

    monkeypatch.setattr(processes, "_start", start)
    settings = load({"federation": {"name": "digits"}, "client": {"state_dir": tmp_path}})
    with pytest.raises(LlmosError, match="nothing is started here"):
        await run_processes(make_scenario(settings, ClientMix(1, 0, 0, 0)), lambda _: None, Shutdown())
    (said,) = [entry.getMessage() for entry in caplog.records if entry.levelname == "ERROR"]
    assert said.startswith("topic digits.control: cleanup.policy is delete, not compact: ")
    assert "topics repair" in said

"""`llmos-stream demo --broker kafka`: a process for each role, over a real Kafka, and none of them left behind."""

import asyncio
import signal
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from llmos_stream.types import Event, EventKind
from tests.cli.aids import Running, Start, wait_for_event
from tests.conftest import KafkaNode

pytestmark = pytest.mark.kafka
_CAST = ("--clients", "3", "--slow", "0", "--late", "0", "--leaving", "0")


def _event_of(kafka: KafkaNode, federation: str, kind: EventKind, client_id: str | None = None) -> Event:
    def wanted(event: Event) -> bool:
        return client_id is None or event.data["client_id"] == client_id

    return asyncio.run(wait_for_event(kafka.bootstrap_servers, federation, kind, wanted))


def _gone(children: dict[str, psutil.Process]) -> bool:
    return not any(child.is_running() for child in children.values())


def _all_children(demo: Running) -> dict[str, psutil.Process]:
    children = demo.children()
    assert children.keys() == {"aggregator", "evaluate", "client-0", "client-1", "client-2"}
    return children


def test_it_goes_on_without_a_client_that_was_killed(
    start: Start, on_kafka: str, kafka: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flags win over what the children would find in the environment they inherit.
    monkeypatch.setenv("LLMOS_STOP__TARGET", "0.1")
    monkeypatch.setenv("LLMOS_CLIENT__MIN_TRAIN_SECONDS", "0.4")
    flags = ("--stop.target", "none", "--stop.max-versions", "8", "--client.wait-seconds", "0.5")
    demo = start("demo", "--broker", "kafka", "--json", *_CAST, *flags)
    _event_of(kafka, on_kafka, EventKind.UPDATE_SENT, "client-0")
    children = _all_children(demo)
    children["client-0"].kill()
    done = demo.wait()
    assert done.status == 0, done
    found = done.json()
    assert (found["finished"], found["version"], found["broker"]) == ("max_versions", 8, "kafka")
    assert found["updates"] == 32
    assert "client-0 was killed (SIGKILL)" in done.err
    assert _gone(children)
    assert (tmp_path / "report.html").exists()


def test_ctrl_c_stops_every_process(start: Start, on_kafka: str, kafka: KafkaNode, tmp_path: Path) -> None:
    demo = start("demo", "--json", *_CAST, "--stop.target", "none", "--stop.patience", "none")
    _event_of(kafka, on_kafka, EventKind.UPDATE_FOLDED)
    children = _all_children(demo)
    demo.signal(signal.SIGINT)
    done = demo.wait()
    assert done.status == 0, done
    found = done.json()
    assert found["finished"] is None
    assert found["updates"] >= 1
    assert _gone(children)
    assert (tmp_path / "report.html").exists()


def test_a_child_that_cannot_start_ends_the_demo_with_its_own_words(
    start: Start, on_kafka: str, tmp_path: Path
) -> None:
    demo = start("demo", "--broker", "kafka", *_CAST, "--task.entry", "nowhere:make")
    done = demo.wait()
    assert done.status == 1
    assert done.out == ""
    first, second = done.err.splitlines()
    assert first in {f"error: {role} ended with status 1:" for role in ("aggregator", "evaluator")}
    assert second == "error: task.entry 'nowhere:make': there is no module nowhere; is its folder on PYTHONPATH?"
    left = [process for process in psutil.process_iter(["environ"]) if _belongs(process, on_kafka)]
    assert left == []
    assert list(tmp_path.iterdir()) == []


def _belongs(process: psutil.Process, federation: str) -> bool:
    environment = process.info["environ"] or {}
    return process.ppid() != 0 and environment.get("LLMOS_FEDERATION__NAME") == federation

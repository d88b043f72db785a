"""`llmos-stream demo --broker kafka`: a process for each role, over a real Kafka, and none of them left behind."""

import asyncio
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from llmos_stream.config import load
from llmos_stream.demo import ClientMix, make_scenario, run_processes
from llmos_stream.runtime import Shutdown
from llmos_stream.types import Event, EventKind
from tests.cli.aids import Run, Start, children_of, wait_for_event
from tests.conftest import KafkaNode, need_a_local_kafka

pytestmark = pytest.mark.kafka


@pytest.mark.full
def test_it_goes_on_without_a_client_that_was_killed(
    start: Start, on_kafka: str, kafka: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Flags win over what the children would find in the environment they inherit.
    monkeypatch.setenv("LLMOS_STOP__TARGET", "0.1")
    monkeypatch.setenv("LLMOS_CLIENT__MIN_TRAIN_SECONDS", "0.3")
    monkeypatch.setenv("LLMOS_AGGREGATION__BUFFER_SIZE", "2")
    flags = ("--stop.target", "none", "--stop.max-versions", "6", "--client.wait-seconds", "0.1")
    demo = start("demo", "--json", "--clients", "2", "--slow", "0", "--late", "0", "--leaving", "0", *flags)

    def sent_by_the_first(event: Event) -> bool:
        return event.data["client_id"] == "client-0"

    asyncio.run(wait_for_event(kafka.bootstrap_servers, on_kafka, EventKind.UPDATE_SENT, sent_by_the_first))
    children = demo.children()
    assert children.keys() == {"aggregator", "evaluate", "client-0", "client-1"}
    children["client-0"].kill()
    done = demo.wait()
    assert done.status == 0, done
    found = done.json()
    assert (found["finished"], found["version"], found["broker"]) == ("max_versions", 6, "kafka")
    assert found["updates"] == 12
    assert "client-0 was killed (SIGKILL)" in done.err
    assert not any(child.is_running() for child in children.values())
    assert (tmp_path / "report.html").exists()


@pytest.mark.full
async def test_a_stop_reaches_every_process(on_kafka: str, tmp_path: Path) -> None:
    events: list[Event] = []
    children: dict[str, psutil.Process] = {}
    shutdown = Shutdown()

    def take(event: Event) -> None:
        events.append(event)
        if event.kind is EventKind.UPDATE_SENT and not shutdown.requested:
            children.update(children_of(psutil.Process()))
            shutdown.request()

    # A folder of the clients' own each, although one was named for all.
    settings = load({"client": {"state_dir": tmp_path}, "runtime": {"log_level": "error"}})
    await run_processes(make_scenario(settings, ClientMix(1, slow=0, late=0, leaving=0)), take, shutdown)
    assert children.keys() == {"aggregator", "evaluate", "client-0"}
    assert not any(child.is_running() for child in children.values())
    assert not [event for event in events if event.kind is EventKind.RUN_FINISHED]
    assert (tmp_path / "client-0" / "state.json").exists()


@pytest.mark.full
def test_a_child_that_cannot_start_ends_the_demo_with_its_own_words(llmos: Run, tmp_path: Path) -> None:
    need_a_local_kafka()
    before = set(psutil.Process().children(recursive=True))
    report = tmp_path / "report.html"
    # No Kafka is named: one is started for the demo, and goes with it.
    done = llmos("demo", "--broker", "kafka", "--clients", "1", "--task.entry", "nowhere:make", "--report", report)
    assert (done.status, done.out) == (1, "")
    first, second = done.err.splitlines()
    assert first in {f"error: {role} ended with status 1:" for role in ("aggregator", "evaluator")}
    assert second.startswith("error: task.entry 'nowhere:make': there is no module nowhere (looked in ")
    assert set(psutil.Process().children(recursive=True)) <= before
    assert not report.exists()

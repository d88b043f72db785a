"""Each fault on a real Kafka, with real processes that are really killed."""

import asyncio
import os
import subprocess
import sys
import threading
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from llmos_stream.broker import LocalKafka
from tests.conftest import KafkaNode
from tests.faults.host import Ended
from tests.faults.injector import Notice
from tests.faults.net import kill_and_start
from tests.faults.plan import AGGREGATOR, BROKER, Fault, Plan, Point
from tests.faults.processes import InProcesses
from tests.faults.trials import Trial, try_on_kafka
from tests.forkserver import context

OUTAGE_SECONDS = 5.0
STOP_SECONDS = 60.0


def _count_threads_of_the_server(answers: Connection) -> None:
    answers.send_bytes(str(len(list(Path(f"/proc/{os.getppid()}/task").iterdir()))).encode())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="threads are counted in /proc")
def test_the_server_that_forks_the_roles_runs_no_threads() -> None:
    ours, theirs = context().Pipe(duplex=False)
    process = context().Process(target=_count_threads_of_the_server, args=(theirs,))
    process.start()
    assert ours.recv_bytes() == b"1"
    process.join()


def _name_settings(answers: Connection) -> None:
    answers.send_bytes(",".join(name for name in os.environ if name == "LLMOS_OF_ONE_TEST").encode())


@pytest.mark.full
def test_what_a_test_sets_for_itself_reaches_no_process_of_others(tmp_path: Path) -> None:
    """The server is started here, in a process of its own, by a test that has set something."""
    script = (
        "from tests.forkserver import context\nimport os, tests.faults.test_processes as here\n"
        "os.environ['LLMOS_OF_ONE_TEST'] = '1'\nos.chdir(os.environ['ELSEWHERE'])\nforks = context()\n"
        "ours, theirs = forks.Pipe(duplex=False)\n"
        "forks.Process(target=here._name_settings, args=(theirs,)).start()\nprint(repr(ours.recv_bytes()))"
    )
    environment = os.environ | {"ELSEWHERE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )
    assert (done.stdout, done.returncode) == ("b''\n", 0), done.stderr


async def _try(plan: Plan, node: KafkaNode, folder: Path) -> Trial:
    trial = await try_on_kafka(plan, node.bootstrap_servers, lambda: kill_and_start(node.own()), folder)
    assert trial.findings == []
    assert sorted(trial.outcome.struck) == sorted(plan.points)
    return trial


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("scenario", "points"),
    [
        ("fedbuff-adam", (Point(Fault.KILL_BEFORE, AGGREGATOR, 2), Point(Fault.CUT_NETWORK, "client-1", 1, 800))),
        ("fedbuff-momentum", (Point(Fault.KILL_IN, AGGREGATOR, 3, 2), Point(Fault.KILL_CLIENT, "client-0", 2, 2))),
        ("fedasync", (Point(Fault.KILL_AFTER, AGGREGATOR, 3), Point(Fault.KILL_CLIENT_AFTER_SEND, "client-1", 4))),
        ("fedbuff-deadline", (Point(Fault.HANG, AGGREGATOR, 2, 1), Point(Fault.REORDER, "client-0", 1, 1))),
        (
            "fedbuff-sgd",
            (
                Point(Fault.CUT_NETWORK, AGGREGATOR, 2, 800),
                Point(Fault.DUPLICATE, "client-0", 3, 1),
                Point(Fault.DELAY, "client-1", 1, 3),
            ),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(point.fault) for point in value),
)
async def test_a_fault_costs_time_and_nothing_else(
    scenario: str, points: tuple[Point, ...], kafka: KafkaNode, tmp_path: Path
) -> None:
    await _try(Plan(4, scenario, "int8", points=points), kafka, tmp_path)


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.parametrize("model", ["fragments", "lora"])
async def test_a_fault_costs_no_fragment_and_nothing_that_is_carried(
    model: str, kafka: KafkaNode, tmp_path: Path
) -> None:
    points = (
        Point(Fault.KILL_IN, AGGREGATOR, 2, 2),
        Point(Fault.KILL_CLIENT, "client-0", 2, 1),
        Point(Fault.CUT_NETWORK, "client-1", 1, 800),
    )
    await _try(Plan(10, "fedbuff-momentum", "topk2", points=points, model=model, fragments=3), kafka, tmp_path)


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
async def test_kafka_killed_and_away_for_a_while(kafka: KafkaNode, tmp_path: Path) -> None:
    node = kafka.own()
    plan = Plan(6, "fedbuff-momentum", "int8", updates=8, points=(Point(Fault.RESTART_BROKER, BROKER, 2),))
    trial = await try_on_kafka(plan, kafka.bootstrap_servers, lambda: _outage(node), tmp_path)
    assert trial.findings == []
    assert trial.outcome.struck == list(plan.points)
    for role in (f"{AGGREGATOR}-0", *plan.names):
        assert kafka.bootstrap_servers in (tmp_path / role / "log").read_text(), "it must say what it waits for"


@pytest.mark.kafka
@pytest.mark.own_kafka
async def test_a_stop_ends_roles_whose_kafka_is_gone(kafka: KafkaNode, federation: str, tmp_path: Path) -> None:
    node = kafka.own()
    plan = Plan(8, updates=1000)
    host = InProcesses(plan, federation, kafka.bootstrap_servers, tmp_path, {})
    committed: asyncio.Queue[Notice] = asyncio.Queue()
    roles = [host.start(role, (), committed.put_nowait) for role in (f"{AGGREGATOR}-0", *plan.names)]
    try:
        while (await committed.get()).version < 2:
            pass
        await asyncio.to_thread(node.kill)
        for role in roles:
            role.ask_to_stop()
        async with asyncio.timeout(STOP_SECONDS):
            endings = [await role.ended() for role in roles]
    finally:
        for role in roles:
            await role.destroy()
        await asyncio.to_thread(node.start)
    assert [ending.how for ending in endings] == [Ended.DONE] * 3, endings


def _outage(node: LocalKafka) -> None:
    node.kill()
    threading.Event().wait(OUTAGE_SECONDS)  # an outage is a matter of time, not of a condition
    node.start()

"""`llmos-stream aggregator`, `client` and `evaluate`: processes over a real Kafka, and what they say without one."""

import asyncio
import json
import signal

import pytest

from llmos_stream.types import Event, EventKind
from tests.cli.aids import Run, Start, wait_for_event
from tests.conftest import KafkaNode

_COMMANDS = (
    ["aggregator"],
    ["client"],
    ["evaluate"],
    ["evaluate", "--once"],
    ["topics", "list"],
    ["versions", "list"],
    ["versions", "show"],
    ["inspect", "updates"],
)


_WAITING = (["aggregator"], ["client"], ["evaluate"])


@pytest.mark.parametrize(
    "command", [*(command for command in _COMMANDS if command not in _WAITING), ["demo"]], ids=" ".join
)
def test_no_broker_at_the_address(llmos: Run, nobody: str, command: list[str]) -> None:
    done = llmos(*command, "--broker.bootstrap-servers", nobody, "--broker.connect-timeout-seconds", "0.3")
    assert (done.status, done.out) == (3, "")
    *_, said = done.err.splitlines()  # demo tells the name of its federation before it
    assert said.startswith(f"error: no Kafka answers at {nobody} after 0.3 s")
    assert said.endswith("check LLMOS_BROKER__BOOTSTRAP_SERVERS, or start one with `llmos-stream broker start`")
    assert "Traceback" not in done.err


_ELSEWHERE = (
    ["archive", "--registry.url", "memory://"],
    ["monitor"],
    ["serve", "--task.entry", "blobs"],
    ["deploy", "--task.entry", "llm", "--deploy.urls", "http://127.0.0.1:9"],
)


@pytest.mark.parametrize(
    "command",
    [_WAITING[0], *(pytest.param(command, marks=pytest.mark.full) for command in (*_WAITING[1:], *_ELSEWHERE))],
    ids=lambda command: command[0],
)
def test_a_role_waits_for_its_broker_and_can_be_stopped(start: Start, nobody: str, command: list[str]) -> None:
    flags = ("--json", "--broker.bootstrap-servers", nobody, "--broker.connect-timeout-seconds", "0.3")
    role = start(*command, *flags, new=True)
    said = role.line("err", "no Kafka answers")
    assert f"no Kafka answers at {nobody} after 0.3 s" in said
    assert "start one with `llmos-stream broker start`; connecting again in 0.5 s" in said
    role.line("err", "connecting again in 1.0 s")
    role.signal(signal.SIGTERM)
    done = role.wait()
    assert done.status == 0, done
    assert "Traceback" not in done.err
    assert all(value in (0, None, [], {}, "stopped") for value in done.json().values()), done


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--task.entry", "llm"], "deploy.urls: name the servers, as in --deploy.urls http://gpu1:8000"),
        (["--deploy.urls", "http://gpu1:8000", "--task.entry", "blobs"], "deploy needs versions of the task llm"),
        (["--deploy.urls", "gpu1:8000"], "'gpu1:8000' is no address such as http://gpu1:8000"),
        (["--deploy.urls", "http://gpu1:99999"], "'http://gpu1:99999' is no address such as http://gpu1:8000"),
        (["--deploy.urls", "http://gpu1:port"], "'http://gpu1:port' is no address such as http://gpu1:8000"),
        (["--deploy.urls", "https:///v1"], "'https:///v1' is no address such as http://gpu1:8000"),
    ],
)
def test_a_deployer_needs_servers_and_a_language_model(llmos: Run, flags: list[str], said: str) -> None:
    done = llmos("deploy", *flags)
    assert (done.status, done.out) == (2, "")
    assert said in done.err


@pytest.mark.parametrize(("command", "status"), [("client", 130), ("aggregator", 130), ("monitor", 0)])
def test_ctrl_c_is_an_interrupt_of_what_has_an_end_of_its_own(
    start: Start, nobody: str, command: str, status: int
) -> None:
    role = start(command, "--json", "--broker.bootstrap-servers", nobody, "--broker.connect-timeout-seconds", "0.3")
    role.line("err", "connecting again")
    role.signal(signal.SIGINT)
    done = role.wait()
    assert done.status == status, done
    assert done.json()
    assert "Traceback" not in done.err


@pytest.mark.full
@pytest.mark.parametrize(
    "command",
    ["audit 1", "demo", "inspect updates", "pause", "replay", "resume", "topics list", "versions list"],
)
def test_each_other_command_as_it_is_installed(start: Start, nobody: str, command: str) -> None:
    """In an interpreter that has imported nothing else before."""
    flags = ("--broker.bootstrap-servers", nobody, "--broker.connect-timeout-seconds", "0.3")
    done = start(*command.split(), *flags, new=True).wait()
    assert (done.status, done.out) == (3, "")
    assert f"error: no Kafka answers at {nobody}" in done.err


@pytest.mark.full
@pytest.mark.kafka
@pytest.mark.own_kafka
def test_roles_started_before_their_broker_take_part(
    start: Start, llmos: Run, on_kafka: str, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__WAIT_SECONDS", "0.2")
    monkeypatch.setenv("LLMOS_BROKER__CONNECT_TIMEOUT_SECONDS", "0.5")
    monkeypatch.setenv("LLMOS_AGGREGATION__BUFFER_SIZE", "1")
    monkeypatch.setenv("LLMOS_STOP__MAX_VERSIONS", "2")
    node = kafka.own()
    node.kill()
    try:
        roles = [start("aggregator"), start("client"), start("evaluate")]
        for role in roles:
            role.line("err", "connecting again")
    finally:
        node.start()
    for role in roles:
        done = role.wait()
        assert done.status == 0, done
        assert "Traceback" not in done.err
    assert [row["version"] for row in llmos("versions", "list", "--json").json()] == [0, 1, 2]


@pytest.mark.parametrize("command", _COMMANDS, ids=" ".join)
def test_no_broker_named(llmos: Run, command: list[str]) -> None:
    done = llmos(*command)
    assert done.status == 2
    assert done.error().startswith("broker.bootstrap_servers: not set")
    assert "LLMOS_BROKER__BOOTSTRAP_SERVERS=HOST:PORT" in done.error()
    assert "`llmos-stream broker start`" in done.error()


@pytest.mark.kafka
def test_a_federation_of_processes(start: Start, llmos: Run, on_kafka: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__WAIT_SECONDS", "0.2")
    cap = ("--aggregation.buffer-size", "2", "--stop.max-versions", "3")
    roles = {
        "aggregator": start("aggregator", *cap, "--json"),
        "evaluator": start("evaluate", "--json"),
        "first": start("client", "--client.shard", "0", "--json"),
        "second": start("client", "--client.shard", "1"),
    }
    ended = {name: role.wait() for name, role in roles.items()}
    assert {name: done.status for name, done in ended.items()} == dict.fromkeys(roles, 0), ended

    assert ended["aggregator"].json() == {
        "reason": "max_versions",
        "detail": "version 3 reached the limit of 3",
        "version": 3,
    }
    measured = ended["evaluator"].json()
    assert (measured["version"], measured["num_examples"]) == (3, 256)
    assert measured["metrics"].keys() == {"accuracy", "loss"}
    first, second = ended["first"].json(), ended["second"].out.partition(" updates sent")
    assert first["updates"] + int(second[0]) >= 6
    assert first["counted"] + first["dropped"] + first["waiting"] == first["updates"]
    assert " counted" in second[2]
    rows = llmos("versions", "list", "--json").json()
    assert [(row["version"], row["contributions"]) for row in rows] == [(0, 0), (1, 2), (2, 2), (3, 2)]

    # The run is over: its newest version can be measured again, and nobody goes on with it unasked.
    once = llmos("evaluate", "--once", "--json").json()
    assert (once["version"], once["metrics"]) == (3, pytest.approx(measured["metrics"]))
    told = llmos("evaluate", "--once").out
    assert told == (
        f"version 3: accuracy {once['metrics']['accuracy']:.4f}, loss {once['metrics']['loss']:.4f} on 256 examples\n"
    )
    done = llmos("aggregator", *cap, "--runtime.log-level", "error")
    assert done.status == 1
    assert done.error() == (
        f"federation {on_kafka} ended at version 3 (max_versions); go on with it under another limit "
        "(as --stop.max-versions) or with --resume, or start a new one under another name"
    )
    late = llmos("client", "--json", "--client.id", "late")
    assert (late.status, late.json()) == (0, {"updates": 0, "counted": 0, "dropped": 0, "waiting": 0})
    assert "run ended: max_versions" in late.err


@pytest.mark.kafka
def test_signals_and_a_restart(
    start: Start, llmos: Run, on_kafka: str, kafka: KafkaNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLMOS_CLIENT__WAIT_SECONDS", "0.5")
    monkeypatch.setenv("LLMOS_AGGREGATION__BUFFER_SIZE", "1")

    def version_after(number: int) -> int:
        def wanted(event: Event) -> bool:
            return int(str(event.data["version"])) > number

        found = wait_for_event(kafka.bootstrap_servers, on_kafka, EventKind.VERSION_PUBLISHED, wanted)
        return int(str(asyncio.run(found).data["version"]))

    aggregator, client = start("aggregator"), start("client", "--client.id", "one", "--json")
    version = version_after(0)

    second = llmos("client", "--client.id", "one", "--runtime.log-level", "error")
    assert second.status == 1
    assert second.error().startswith("client one is running already (its folder ")
    assert second.error().endswith("give this one a client.id of its own")

    aggregator.signal(signal.SIGTERM)
    stopped = aggregator.wait()
    assert stopped.status == 0, stopped
    assert stopped.out == "stopped; the next start goes on from the newest version\n"
    assert "SIGTERM: stopping" in stopped.err

    # The client has not noticed, and the next aggregator goes on where the last one stopped.
    newest = llmos("versions", "list", "--json").json()[-1]["version"]
    assert newest >= version
    aggregator = start("aggregator", "--json")
    version_after(newest)
    for role, expected in (
        (client, {"updates", "counted", "dropped", "waiting"}),
        (aggregator, {"reason", "detail", "version"}),
    ):
        role.signal(signal.SIGINT)
        done = role.wait()
        assert done.status == 130, done
        assert "SIGINT: stopping" in done.err
        assert "Traceback" not in done.err
        assert json.loads(done.out).keys() == expected
    numbers = [row["version"] for row in llmos("versions", "list", "--json").json()]
    assert numbers == list(range(len(numbers)))


@pytest.mark.kafka
def test_a_task_or_a_state_folder_that_cannot_be_used(llmos: Run, on_kafka: str) -> None:
    for command in ("aggregator", "client", "evaluate"):
        done = llmos(command, "--task.entry", "nowhere:make")
        assert done.status == 1
        assert done.error().startswith("task.entry 'nowhere:make': there is no module nowhere (looked in the current")
    llmos("topics", "create")
    done = llmos("client", "--client.state-dir", "/dev/null")
    assert done.status == 1
    assert done.error().startswith("client.state_dir: /dev/null")

"""The images are built and the stack of `docker/compose.yaml` comes up, works, is killed piece by piece, and goes.

In this order: the stack lives as long as the module.
"""

import json
import re
from typing import Any

import orjson
import pytest

from llmos_stream.cli.main import main
from tests.docker import images
from tests.docker.stack import AGGREGATORS, PATIENCE_SECONDS, ROLES, WATCH, Container, Stack, ask
from tests.docker.waiting import Say, timed, until

pytestmark = [pytest.mark.timeout(1500), pytest.mark.full, pytest.mark.in_order, pytest.mark.xdist_group("containers")]

_KILLED_TOGETHER = (
    ("kafka", *WATCH),
    ("client-1", "evaluator"),
    ("client-2", "archiver"),
    ("client-3", "inference"),
    ("monitor",),
)
"""Two that have little to do with each other: who comes back, and whether the run goes on, is seen of both at once."""
_MIB = 1 << 20
_IMAGE = [[0.0] * 8 for _ in range(8)]
_CONFINED = """
import os
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
written = []
for folder in ("/", "/app", "/opt/llmos", "/etc", "/home", "/var/lib/llmos", "/tmp"):
    try:
        with open(folder + "/probe", "w"):
            written.append(folder)
        os.remove(folder + "/probe")
    except OSError:
        pass
print(os.getuid(), os.getgid(), int(status["CapEff"], 16), int(status["NoNewPrivs"]), *written)
"""
_ARCHIVED = """
from llmos_stream.config import load
from llmos_stream.registry import open_store
settings = load()
print(*open_store(settings.registry, settings.federation.name).numbers())
"""


def _predict(stack: Stack) -> dict[str, Any]:
    status, body = ask("127.0.0.1", stack.ports["INFERENCE_PORT"], "/v1/predict", {"inputs": [[_IMAGE]]})
    assert status == 200, body
    found: dict[str, Any] = orjson.loads(body)
    return found


def _comes_back(stack: Stack, service: str, before: Container) -> None:
    until(lambda: stack.back(service, before), f"{service} is started again", PATIENCE_SECONDS)
    if service in ROLES:
        _is_ready(stack, service)


def _leads_after(stack: Stack, aggregator: str, term: int) -> None:
    until(lambda: stack.terms()[aggregator] > term, f"{aggregator} leads", PATIENCE_SECONDS)


def _is_ready(stack: Stack, service: str) -> None:
    until(lambda: stack.ready(service), f"{service} is ready", PATIENCE_SECONDS)


def test_the_image_is_as_small_as_we_say(stack: Stack, say: Say) -> None:
    sizes = images.layers(stack.engine, images.APP)
    ours = sum(size for text, size in sizes.items() if "/opt/torch" not in text)
    whole = stack.engine.inspect("image", images.APP)["Size"]
    base = stack.engine.inspect("image", images.BASE)["Size"]
    say(f"image {whole / _MIB:.0f} MiB, of which base {base / _MIB:.0f} and all but torch {(ours - base) / _MIB:.0f}")
    assert ours - base < 400 * _MIB
    config = stack.engine.inspect("image", images.APP)["Config"]
    assert (config["User"], config["StopSignal"]) == ("10001:10001", "SIGTERM")


def test_everyone_is_ready(stack: Stack) -> None:
    for service in ROLES:
        _is_ready(stack, service)
        assert stack.ask(service, "/health")[0] == 200


def test_a_version_is_trained_by_three_clients(stack: Stack, capsys: pytest.CaptureFixture[str], say: Say) -> None:
    with timed(say, "three versions"):
        until(lambda: stack.version() >= 3, "there is version 3", PATIENCE_SECONDS)
    # From this machine, through the port that is open on it.
    bootstrap = f"127.0.0.1:{stack.ports['KAFKA_PORT']}"
    assert main(["versions", "list", "--json", "--broker.bootstrap-servers", bootstrap]) == 0
    assert len(json.loads(capsys.readouterr().out)) >= 3

    def all_were_folded() -> bool:
        text = stack.ask("monitor", "/metrics")[1]
        found = re.search(r"^llmos_federation_client_joins_total (\S+)$", text, re.MULTILINE)
        return found is not None and float(found[1]) >= 3

    until(all_were_folded, "three clients have joined", PATIENCE_SECONDS)


def test_a_prediction_names_its_version(stack: Stack) -> None:
    said = _predict(stack)
    assert said["version"] >= 0
    assert [len(row) for row in said["outputs"]] == [10]


def test_the_live_page_shows_the_run(stack: Stack) -> None:
    status, page = ask("127.0.0.1", stack.ports["PAGE_PORT"], "/")
    assert status == 200
    assert "<main" in page

    def clients() -> int:
        status, state = ask("127.0.0.1", stack.ports["PAGE_PORT"], "/api/state")
        assert status == 200
        return len(orjson.loads(state)["clients"]["rows"])

    until(lambda: clients() == 3, "the page shows three clients", PATIENCE_SECONDS)


@pytest.mark.parametrize("service", ROLES)
def test_nobody_is_root_or_writes_to_the_root_file_system(stack: Stack, service: str) -> None:
    uid, gid, capabilities, no_new_privileges, *written = stack.run_in(service, _CONFINED).split()
    assert (uid, gid, capabilities, no_new_privileges) == ("10001", "10001", "0", "1")
    keeps = {"/var/lib/llmos"} if service.startswith("client") or service == "archiver" else set()
    assert set(written) == {"/tmp", *keeps}  # noqa: S108 (a tmpfs of the container)


def test_what_is_archived_is_read_by_those_who_need_it(stack: Stack, say: Say) -> None:
    with timed(say, "a version is archived"):
        until(lambda: stack.run_in("archiver", _ARCHIVED).split() != [], "a version is archived", PATIENCE_SECONDS)
    for reader in ("inference", "monitor"):
        before, seen, after = (set(stack.run_in(name, _ARCHIVED).split()) for name in ("archiver", reader, "archiver"))
        assert before & after <= seen, reader  # old ones are deleted while they are counted


@pytest.mark.skipif(not WATCH, reason="docker/prometheus is not there")
def test_prometheus_sees_everyone(stack: Stack) -> None:
    def all_are_up() -> bool:
        status, body = ask("127.0.0.1", stack.ports["PROMETHEUS_PORT"], "/api/v1/targets?state=active")
        assert status == 200, body
        targets = orjson.loads(body)["data"]["activeTargets"]
        up = {target["labels"]["instance"].partition(":")[0] for target in targets if target["health"] == "up"}
        return set(ROLES) <= up

    until(all_are_up, "Prometheus has scraped all roles", PATIENCE_SECONDS)


@pytest.mark.parametrize("services", _KILLED_TOGETHER, ids="-".join)
def test_killed_containers_come_back_and_the_run_goes_on(stack: Stack, services: tuple[str, ...], say: Say) -> None:
    said = " and ".join(services)
    with timed(say, f"kill -9 {said}, back and on"):
        before = {service: stack.kill(service) for service in services}
        for service, container in before.items():
            _comes_back(stack, service, container)
        stack.moves_on(f"after {said} were killed")


def test_each_container_is_killed_once() -> None:
    killed = [service for services in _KILLED_TOGETHER for service in services]
    assert sorted([*killed, *AGGREGATORS]) == sorted(["kafka", *ROLES, *WATCH])


def test_a_standby_takes_over_from_each_aggregator(stack: Stack, say: Say) -> None:
    for _ in AGGREGATORS:
        terms = stack.terms()
        leader = max(terms, key=lambda name: terms[name])
        (standby,) = set(AGGREGATORS) - {leader}
        with timed(say, f"kill -9 {leader}, {standby} leads, back and on"):
            before = stack.kill(leader)
            _leads_after(stack, standby, terms[leader])
            _comes_back(stack, leader, before)
            stack.moves_on(f"after {leader} was killed")


def test_everyone_is_healthy_again(stack: Stack) -> None:
    for service in ("kafka", *ROLES, *WATCH):
        until(lambda: stack.look(service).healthy, f"{service} is healthy", PATIENCE_SECONDS)  # noqa: B023
    assert _predict(stack)["version"] >= 0


def test_everyone_ends_in_order_and_nothing_stays(stack: Stack, say: Say) -> None:
    with timed(say, "stop and down"):
        stack.stop()
        statuses = {service: stack.look(service).status for service in ROLES}
        assert statuses == dict.fromkeys(ROLES, 0)
        stack.down()  # and nothing stays
    assert stack.left() == {"container": [], "volume": [], "network": []}

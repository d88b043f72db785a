"""What the container files say, read without starting anything."""

import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from llmos_stream.config import SECTIONS, load
from llmos_stream.registry import NotArchived, open_store
from services import PORT
from tests.docker.images import ROOT
from tests.docker.stack import ROLES

_DOCKER = ROOT / "docker"
_COMPOSE = _DOCKER / "compose.yaml"
_THREE = _DOCKER / "compose.three-brokers.yaml"
_BIN = Path(sys.executable).parent
_DOCKERFILES = [_DOCKER / "Dockerfile", *sorted((ROOT / "tests" / "docker").glob("*/Dockerfile"))]


def _run(tool: str, *arguments: object) -> str:
    """What a tool beside this Python prints; skips where the extra `dev` is not installed."""
    found = _BIN / tool
    if not found.is_file():
        pytest.skip(f"{tool} is not installed: pip install -e '.[dev]'")
    done = subprocess.run([found, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _config(*files: Path) -> dict[str, Any]:
    """The services as compose understands them."""
    named = [word for file in files for word in ("--file", file)]
    found: dict[str, Any] = yaml.safe_load(_run("docker-compose", *named, "config"))
    return found


@pytest.fixture(scope="module")
def composed() -> dict[str, Any]:
    return _config(_COMPOSE)


@pytest.mark.parametrize("file", _DOCKERFILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_hadolint_has_nothing_to_say(file: Path) -> None:
    assert _run("hadolint", file) == ""


def test_the_compose_files_follow_their_schema() -> None:
    _run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", *sorted(_DOCKER.glob("*.yaml")))


def test_the_image_takes_no_more_than_is_named() -> None:
    lines = (_DOCKER / "Dockerfile.dockerignore").read_text().splitlines()
    rules = [line for line in lines if line and not line.startswith("#")]
    assert rules[0] == "*"
    for rule in rules[1:]:
        assert not rule.startswith("!") or (ROOT / rule.removeprefix("!")).exists(), rule


def test_the_image_asks_where_the_services_answer() -> None:
    text = (_DOCKER / "Dockerfile").read_text()
    assert f"http://127.0.0.1:{PORT}/health" in text


def test_every_service_has_a_container(composed: dict[str, Any]) -> None:
    commands = {" ".join(service["command"]) for service in composed["services"].values() if "command" in service}
    modules = {path.stem for path in (ROOT / "services").glob("[a-z]*.py")}
    assert {f"python -m services.{name}" for name in modules} <= commands
    assert set(ROLES) | {"kafka", "prometheus", "grafana"} == set(composed["services"])


def test_ports_are_open_on_loopback_alone(composed: dict[str, Any]) -> None:
    ports = [port for service in composed["services"].values() for port in service.get("ports", [])]
    assert len(ports) >= 5
    assert {port["host_ip"] for port in ports} == {"127.0.0.1"}


def test_nobody_may_more_than_needed(composed: dict[str, Any]) -> None:
    for name, service in composed["services"].items():
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert int(service["mem_limit"]) <= 1 << 30, name
        assert service["pids_limit"] <= 512, name
        assert service["restart"] in ("on-failure", "unless-stopped"), name
        assert "stop_grace_period" in service, name
        assert service.get("read_only") or name == "kafka", name  # whose image writes its settings into itself
        assert "privileged" not in service, name
        assert not any("docker.sock" in str(volume) for volume in service.get("volumes", [])), name


def test_clients_have_different_data_and_states_of_their_own(composed: dict[str, Any]) -> None:
    clients = [service for name, service in composed["services"].items() if name.startswith("client")]
    told = [client["environment"] for client in clients]
    assert {one["LLMOS_CLIENT__SHARD"] for one in told} == {"0", "1", "2"}
    assert {one["LLMOS_TASK__SHARDS"] for one in told} == {"3"}
    assert len({one["LLMOS_CLIENT__ID"] for one in told}) == 3
    assert len({client["volumes"][0]["source"] for client in clients}) == 3
    for client in clients:
        assert client["environment"]["LLMOS_CLIENT__STATE_DIR"].startswith(client["volumes"][0]["target"])


def test_versions_are_kept_by_one_and_read_by_two(composed: dict[str, Any]) -> None:
    services = composed["services"]
    named = {
        name: service["environment"].get("LLMOS_REGISTRY__URL") for name, service in services.items() if name in ROLES
    }
    (url,) = {named.pop(name) for name in ("archiver", "inference", "monitor")}
    assert set(named.values()) == {None}
    mounts = {
        name: mount
        for name, service in services.items()
        for mount in service.get("volumes", [])
        if mount.get("source") == "models"
    }
    assert mounts.keys() == {"archiver", "inference", "monitor"}
    assert {mount["target"] for mount in mounts.values()} == {"/var/lib/llmos"}
    assert urlsplit(url).path.startswith("/var/lib/llmos/")
    assert not mounts.pop("archiver").get("read_only")  # and its mount gives a new volume its owner
    for mount in mounts.values():
        assert mount["read_only"] is True
        assert mount["volume"]["nocopy"] is True


def test_reading_a_volume_that_is_empty_makes_nothing_there(tmp_path: Path) -> None:
    store = open_store(load({"registry": {"url": f"file://{tmp_path}/models"}}).registry, "ward")
    assert store.numbers() == []
    assert not store.has(1)
    with pytest.raises(NotArchived):
        store.load(1)
    assert list(tmp_path.iterdir()) == []


def test_everybody_waits_for_whom_they_need(composed: dict[str, Any]) -> None:
    for name in ROLES:
        waits = composed["services"][name]["depends_on"]
        assert "kafka" in waits
        assert name.startswith("aggregator") or "aggregator-1" in waits
        assert {one["condition"] for one in waits.values()} == {"service_healthy"}


def test_no_secret_is_written_down(composed: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LLMOS_INFERENCE__TOKEN", "from-the-environment")
    given = _config(_COMPOSE)["services"]["inference"]["environment"]
    assert given["LLMOS_INFERENCE__TOKEN"] == "from-the-environment"  # noqa: S105
    assert composed["services"]["inference"]["environment"].get("LLMOS_INFERENCE__TOKEN") is None
    assert "docker/.env" in (ROOT / ".gitignore").read_text().split()


def _kubernetes_settings() -> list[str]:
    texts = [path.read_text() for path in (_DOCKER / "kubernetes").rglob("*.yaml")]
    return [word.strip("'\"").split("=")[0] for text in texts for word in text.replace(",", " ").split()]


def test_settings_named_in_the_files_exist(composed: dict[str, Any]) -> None:
    named = {name for service in composed["services"].values() for name in service.get("environment", {})}
    named |= {word for word in _kubernetes_settings() if word.startswith("LLMOS_")}
    for name in sorted(name for name in named if name.startswith("LLMOS_")):
        section, _, field = name.removeprefix("LLMOS_").lower().partition("__")
        if section == "dashboard" and section not in SECTIONS:
            continue
        assert field in SECTIONS[section].model_fields, name


def test_three_brokers_keep_three_copies() -> None:
    services = _config(_COMPOSE, _THREE)["services"]
    nodes = {name: services[name] for name in ("kafka", "kafka-2", "kafka-3")}
    assert {node["environment"]["KAFKA_NODE_ID"] for node in nodes.values()} == {"1", "2", "3"}
    assert len({node["environment"]["KAFKA_ADVERTISED_LISTENERS"] for node in nodes.values()}) == 3
    assert len({node["ports"][0]["published"] for node in nodes.values()}) == 3
    assert all(len(node["ports"]) == 1 for node in nodes.values())
    for node in nodes.values():
        told = node["environment"]
        assert told["KAFKA_CONTROLLER_QUORUM_VOTERS"].count("@") == 3
        replicas = [value for name, value in told.items() if name.endswith("REPLICATION_FACTOR")]
        assert set(replicas) == {"3"}
        in_sync = [value for name, value in told.items() if name.endswith(("MIN_ISR", "MIN_INSYNC_REPLICAS"))]
        assert set(in_sync) == {"2"}
    for name in ROLES:
        assert services[name]["environment"]["LLMOS_BROKER__BOOTSTRAP_SERVERS"].count(":9092") == 3
    assert set(nodes) <= set(services["aggregator-1"]["depends_on"])

"""The Kubernetes manifests, as kustomize puts them together, against the schemas of Kubernetes; no cluster is asked."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docker.images import ROOT
from tests.docker.needs import PROMISED

_FOLDER = ROOT / "docker" / "kubernetes"
_PLACES = ("base", "overlays/example")

Objects = list[dict[str, Any]]


def _render(folder: Path) -> str:
    """What kustomize makes of a folder; skips where there is none, fails where CI promises one."""
    commands = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    found = next((command for tool, command in commands.items() if shutil.which(tool)), None)
    if found is None:
        missing = "neither kustomize nor kubectl is installed"
        if PROMISED:
            pytest.fail(f"CI must put the manifests together: {missing}")
        pytest.skip(missing)
    done = subprocess.run([*found, str(folder)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module", params=_PLACES)
def objects(request: pytest.FixtureRequest) -> Objects:
    return [one for one in yaml.safe_load_all(_render(_FOLDER / request.param)) if one]


def _of(objects: Objects, *kinds: str) -> Objects:
    return [one for one in objects if one["kind"] in kinds]


def _pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """The pods of everything that runs, by name."""
    return {one["metadata"]["name"]: one["spec"]["template"] for one in _of(objects, "Deployment", "StatefulSet")}


def _selects(selector: dict[str, Any], pod: dict[str, Any]) -> bool:
    labels: dict[str, str] = pod["metadata"]["labels"]
    return selector.items() <= labels.items()


def test_they_follow_the_schemas(objects: Objects) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    version = validate.latest_version()
    for one in objects:
        validate.validate(one, version, strict=True)


def test_every_service_runs(objects: Objects) -> None:
    modules = {path.stem for path in (ROOT / "services").glob("[a-z]*.py")}
    commands = [pod["spec"]["containers"][0]["command"] for pod in _pods(objects).values()]
    assert {command[-1] for command in commands} == {f"services.{name}" for name in modules}


def test_pods_pass_the_restricted_standard(objects: Objects) -> None:
    for name, pod in _pods(objects).items():
        spec = pod["spec"]
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] == 10001, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["terminationGracePeriodSeconds"] > 30, name
        (container,) = spec["containers"]
        security = container["securityContext"]
        assert security["readOnlyRootFilesystem"] is True, name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"]["drop"] == ["ALL"], name
        assert {"memory"} <= container["resources"]["limits"].keys(), name
        assert {"memory", "cpu"} <= container["resources"]["requests"].keys(), name


def test_probes_ask_what_is_answered(objects: Objects) -> None:
    for pod in _pods(objects).values():
        (container,) = pod["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        asked = {kind: container[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}
        assert {kind: ask["path"] for kind, ask in asked.items()} == {
            "startup": "/health",
            "liveness": "/health",
            "readiness": "/ready",
        }
        assert all(ports[ask["port"]] == 8080 for ask in asked.values())


def test_mounts_are_of_volumes_and_clients_keep_theirs(objects: Objects) -> None:
    for one in _of(objects, "Deployment", "StatefulSet"):
        spec = one["spec"]["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        there = {volume["name"] for volume in spec["volumes"]} | claims
        mounted = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted.keys() == there
        assert {"/tmp", "/spool"} <= set(mounted.values())  # noqa: S108 (of the container)
        assert claims == ({"kept"} if one["kind"] == "StatefulSet" else set())


def test_clients_have_different_shards(objects: Objects) -> None:
    (client,) = [one for one in _of(objects, "StatefulSet") if one["metadata"]["name"] == "client"]
    told = {entry["name"]: entry for entry in client["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert "pod-index" in told["LLMOS_CLIENT__SHARD"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert told["LLMOS_CLIENT__ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (settings,) = _of(objects, "ConfigMap")
    assert int(settings["data"]["LLMOS_TASK__SHARDS"]) == client["spec"]["replicas"]


def test_selectors_find_their_pods(objects: Objects) -> None:
    pods = _pods(objects)
    for one in _of(objects, "Deployment", "StatefulSet"):
        assert _selects(one["spec"]["selector"]["matchLabels"], pods[one["metadata"]["name"]])
    for one in _of(objects, "Service"):
        name = one["metadata"]["name"]
        assert [found for found, pod in pods.items() if _selects(one["spec"]["selector"], pod)] == [name]
        ports = {port["name"] for port in pods[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    budgets = {one["metadata"]["name"]: one["spec"] for one in _of(objects, "PodDisruptionBudget")}
    assert budgets.keys() == {"aggregator", "inference"}
    for name, spec in budgets.items():
        assert _selects(spec["selector"]["matchLabels"], pods[name])
        (behind,) = [one for one in _of(objects, "Deployment") if one["metadata"]["name"] == name]
        assert behind["spec"]["replicas"] > spec["minAvailable"]


def test_the_network_is_closed_but_for_what_is_named(objects: Objects) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in _of(objects, "NetworkPolicy")}
    everyone = policies["llmos"]
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    assert all(_selects(everyone["podSelector"]["matchLabels"], pod) for pod in _pods(objects).values())
    (names,) = [rule for rule in everyone["egress"] if "to" in rule]
    assert names["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}
    assert {port["port"] for rule in everyone["egress"] for port in rule["ports"]} == {53, 9092, 9093}


def test_the_overlay_names_its_own(objects: Objects, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["objects"] == "base":
        return
    assert {pod["spec"]["containers"][0]["image"] for pod in _pods(objects).values()} == {
        "registry.example/llmos-stream:1"
    }
    assert {one["metadata"].get("namespace", "llmos") for one in objects} == {"llmos"}

"""The Kubernetes manifests, as kustomize puts them together, and what is read from them."""

import shutil
import subprocess
from functools import cache
from typing import Any

import pytest
import yaml

from tests.docker.images import ROOT
from tests.docker.needs import PROMISED

KUBERNETES = ROOT / "docker" / "kubernetes"
BASE, EXAMPLE = "base", "overlays/example"

Objects = list[dict[str, Any]]


def objects_of(place: str) -> Objects:
    """Everything that kustomize makes of a folder; skips where there is no kustomize, fails where CI promises one."""
    return [one for one in yaml.safe_load_all(_render(place)) if one]


@cache
def _render(place: str) -> str:
    commands = {"kustomize": ["kustomize", "build"], "kubectl": ["kubectl", "kustomize"]}
    found = next((command for tool, command in commands.items() if shutil.which(tool)), None)
    if found is None:
        missing = "neither kustomize nor kubectl is installed"
        if PROMISED:
            pytest.fail(f"CI must put the manifests together: {missing}")
        pytest.skip(missing)
    done = subprocess.run([*found, str(KUBERNETES / place)], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def of(objects: Objects, *kinds: str) -> Objects:
    return [one for one in objects if one["kind"] in kinds]


def pods(objects: Objects) -> dict[str, dict[str, Any]]:
    """The pods of everything that runs, by name."""
    return {one["metadata"]["name"]: one["spec"]["template"] for one in of(objects, "Deployment", "StatefulSet")}


def container(pod: dict[str, Any]) -> dict[str, Any]:
    (found,) = pod["spec"]["containers"]
    typed: dict[str, Any] = found
    return typed


def selects(selector: dict[str, Any], pod: dict[str, Any]) -> bool:
    """Whether a selector finds a pod; of expressions it knows In."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    labels: dict[str, str] = pod["metadata"]["labels"]
    expressions = selector.get("matchExpressions", [])
    assert {one["operator"] for one in expressions} <= {"In"}
    within = all(labels.get(one["key"]) in one["values"] for one in expressions)
    return within and selector.get("matchLabels", {}).items() <= labels.items()


def variables(objects: Objects, pod: dict[str, Any]) -> dict[str, str]:
    """What a container is told in the clear: by the ConfigMaps it takes, over which its own variables go."""
    maps = {one["metadata"]["name"]: one["data"] for one in of(objects, "ConfigMap")}
    told: dict[str, str] = {}
    for source in container(pod).get("envFrom", []):
        if "configMapRef" in source:
            told |= maps[source["configMapRef"]["name"]]
    own = container(pod).get("env", [])
    return told | {entry["name"]: entry["value"] for entry in own if "value" in entry}


def secrets(pod: dict[str, Any]) -> set[tuple[str, str]]:
    """Each secret that a pod is given: its name, and the key, or * for all of them. None has to be there."""
    whole = [source["secretRef"] for source in container(pod).get("envFrom", []) if "secretRef" in source]
    sources = [entry.get("valueFrom", {}) for entry in container(pod).get("env", [])]
    single = [source["secretKeyRef"] for source in sources if "secretKeyRef" in source]
    assert all(one["optional"] is True for one in (*whole, *single))
    assert not any("secret" in volume or "projected" in volume for volume in pod["spec"]["volumes"])
    return {(one["name"], "*") for one in whole} | {(one["name"], one["key"]) for one in single}

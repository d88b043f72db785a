"""The Kubernetes manifests, as kustomize puts them together, against the schemas of Kubernetes; no cluster is asked."""

import pytest

from tests.docker.images import ROOT
from tests.docker.manifests import BASE, EXAMPLE, Objects, objects_of, of, pods, selects


@pytest.fixture(scope="module", params=[BASE, EXAMPLE])
def objects(request: pytest.FixtureRequest) -> Objects:
    return objects_of(request.param)


def test_they_follow_the_schemas(objects: Objects) -> None:
    validate = pytest.importorskip("kubernetes_validate")
    version = validate.latest_version()
    for one in objects:
        validate.validate(one, version, strict=True)


def test_every_service_runs(objects: Objects) -> None:
    modules = {path.stem for path in (ROOT / "services").glob("[a-z]*.py")}
    commands = [pod["spec"]["containers"][0]["command"] for pod in pods(objects).values()]
    assert {command[-1] for command in commands} == {f"services.{name}" for name in modules}


def test_pods_pass_the_restricted_standard(objects: Objects) -> None:
    for name, pod in pods(objects).items():
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
    for pod in pods(objects).values():
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
    for one in of(objects, "Deployment", "StatefulSet"):
        spec = one["spec"]["template"]["spec"]
        claims = {claim["metadata"]["name"] for claim in one["spec"].get("volumeClaimTemplates", [])}
        there = {volume["name"] for volume in spec["volumes"]} | claims
        mounted = {mount["name"]: mount["mountPath"] for mount in spec["containers"][0]["volumeMounts"]}
        assert mounted.keys() == there
        assert {"/tmp", "/spool"} <= set(mounted.values())  # noqa: S108 (of the container)
        if one["metadata"]["name"] == "client":
            assert claims == {"kept"}


def test_clients_have_different_shards(objects: Objects) -> None:
    (client,) = [one for one in of(objects, "StatefulSet") if one["metadata"]["name"] == "client"]
    told = {entry["name"]: entry for entry in client["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert "pod-index" in told["LLMOS_CLIENT__SHARD"]["valueFrom"]["fieldRef"]["fieldPath"]
    assert told["LLMOS_CLIENT__ID"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    (settings,) = of(objects, "ConfigMap")
    assert int(settings["data"]["LLMOS_TASK__SHARDS"]) == client["spec"]["replicas"]


def test_selectors_find_their_pods(objects: Objects) -> None:
    templates = pods(objects)
    for one in of(objects, "Deployment", "StatefulSet"):
        assert selects(one["spec"]["selector"], templates[one["metadata"]["name"]])
    for one in of(objects, "Service"):
        name = one["metadata"]["name"]
        assert [
            found for found, pod in templates.items() if selects({"matchLabels": one["spec"]["selector"]}, pod)
        ] == [name]
        ports = {port["name"] for port in templates[name]["spec"]["containers"][0]["ports"]}
        assert {port["targetPort"] for port in one["spec"]["ports"]} <= ports
    budgets = {one["metadata"]["name"]: one["spec"] for one in of(objects, "PodDisruptionBudget")}
    assert budgets.keys() == {"aggregator", "inference"}
    for name, spec in budgets.items():
        assert selects(spec["selector"], templates[name])
        (behind,) = [one for one in of(objects, "Deployment") if one["metadata"]["name"] == name]
        assert behind["spec"]["replicas"] > spec["minAvailable"]


def test_the_network_is_closed_but_for_what_is_named(objects: Objects) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of(objects, "NetworkPolicy")}
    everyone = policies["llmos"]
    assert everyone["policyTypes"] == ["Ingress", "Egress"]
    assert all(selects(everyone["podSelector"], pod) for pod in pods(objects).values())
    (names,) = [rule for rule in everyone["egress"] if "to" in rule]
    assert names["to"][0]["podSelector"]["matchLabels"] == {"k8s-app": "kube-dns"}


def test_the_overlay_names_its_own(objects: Objects, request: pytest.FixtureRequest) -> None:
    if request.node.callspec.params["objects"] == "base":
        return
    assert {pod["spec"]["containers"][0]["image"] for pod in pods(objects).values()} == {
        "registry.example/llmos-stream:1"
    }
    assert {one["metadata"].get("namespace", "llmos") for one in objects} == {"llmos"}

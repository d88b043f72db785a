"""Who is given which secret, who reads the registry and who may reach what, in the base and in the example."""

import re
import tomllib
from urllib.parse import urlsplit

import pytest
from fsspec.registry import known_implementations

from llmos_stream.config import SECTIONS
from tests.docker.images import ROOT
from tests.docker.manifests import (
    BASE,
    EXAMPLE,
    KUBERNETES,
    container,
    objects_of,
    of,
    pods,
    secrets,
    selects,
    variables,
)

_URL = "LLMOS_REGISTRY__URL"
_READERS = {"inference", "monitor"}
_EVERYONE = {("llmos", "*")}
_EXTRAS = re.compile(r"EXTRAS=([a-z0-9,]+)")


def _egress(place: str) -> dict[str, set[int]]:
    """The ports that each pod may reach, whichever policy lets it."""
    objects = objects_of(place)
    policies = [one["spec"] for one in of(objects, "NetworkPolicy")]
    return {
        name: {
            port["port"]
            for policy in policies
            if selects(policy["podSelector"], pod)
            for rule in policy.get("egress", [])
            for port in rule["ports"]
        }
        for name, pod in pods(objects).items()
    }


def _told(place: str, name: str) -> dict[str, str | None]:
    """What each pod is told under a name."""
    objects = objects_of(place)
    return {pod: variables(objects, template).get(name) for pod, template in pods(objects).items()}


@pytest.mark.parametrize("place", [BASE, EXAMPLE])
def test_an_operators_token_is_given_to_its_service_alone(place: str) -> None:
    services = {"inference": "inference", "dashboard": "monitor"}
    with_token = {name for name, section in SECTIONS.items() if "token" in section.model_fields}
    assert services.keys() == with_token - {"deploy"}  # that of the servers it writes to, and no pod here does
    expected = {pod: ("llmos-operators", f"LLMOS_{section.upper()}__TOKEN") for section, pod in services.items()}
    for name, pod in pods(objects_of(place)).items():
        given = {one for one in secrets(pod) if one[0] == "llmos-operators"}
        assert given == ({expected[name]} if name in expected else set()), name
        tokens = [entry["name"] for entry in container(pod).get("env", []) if entry["name"].endswith("TOKEN")]
        assert tokens == ([expected[name][1]] if name in expected else []), name


def test_no_token_is_a_plain_setting() -> None:
    for place in (BASE, EXAMPLE):
        assert not [name for one in of(objects_of(place), "ConfigMap") for name in one["data"] if "TOKEN" in name]
        assert not of(objects_of(place), "Secret")


def test_the_store_is_asked_with_two_kinds_of_credentials() -> None:
    rest = {name: secrets(pod) - _EVERYONE for name, pod in pods(objects_of(EXAMPLE)).items()}
    stores = {name: {one for one in given if one[0] != "llmos-operators"} for name, given in rest.items()}
    assert stores.pop("archiver") == {("llmos-registry", "*")}
    assert {name: given for name, given in stores.items() if given} == {
        name: {("llmos-registry-reader", "*")} for name in _READERS
    }
    assert not [one for pod in pods(objects_of(BASE)).values() for one in secrets(pod) if "registry" in one[0]]


def test_a_volume_of_its_own_is_the_archivers_alone() -> None:
    told = _told(BASE, _URL)
    url = told.pop("archiver")
    assert set(told.values()) == {None}
    (archiver,) = [one for one in of(objects_of(BASE), "StatefulSet") if one["metadata"]["name"] == "archiver"]
    (claim,) = archiver["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOnce"]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(archiver["spec"]["template"])["volumeMounts"]}
    assert isinstance(url, str)
    assert urlsplit(url).path.startswith(mounts[claim["metadata"]["name"]])


def test_an_object_store_is_one_place_for_all_three() -> None:
    told = _told(EXAMPLE, _URL)
    (url,) = {told[name] for name in ("archiver", *_READERS)}
    assert isinstance(url, str)
    assert urlsplit(url).scheme == "s3"
    (archiver,) = [one for one in of(objects_of(EXAMPLE), "StatefulSet") if one["metadata"]["name"] == "archiver"]
    assert "volumeClaimTemplates" not in archiver["spec"]
    mounts = [mount["mountPath"] for mount in container(archiver["spec"]["template"])["volumeMounts"]]
    assert sorted(mounts) == ["/spool", "/tmp"]  # noqa: S108 (of the container)


def test_the_base_lets_out_to_names_and_kafka_alone() -> None:
    assert all(ports == {53, 9092, 9093} for ports in _egress(BASE).values())


def test_the_example_lets_out_to_the_store_and_the_collector() -> None:
    assert {one["metadata"]["name"] for one in of(objects_of(EXAMPLE), "NetworkPolicy")} == {
        *("llmos", "inference", "monitor"),
        *("object-store", "tracing"),
    }
    egress = _egress(EXAMPLE)
    assert {name for name, ports in egress.items() if 443 in ports} == {"archiver", *_READERS}
    (endpoint,) = set(_told(EXAMPLE, "LLMOS_TRACING__ENDPOINT").values())
    assert isinstance(endpoint, str)
    collector = urlsplit(endpoint).port
    assert collector == 4318
    assert all(ports - {443} == {53, 9092, 9093, collector} for ports in egress.values())


def test_the_image_for_an_object_store_has_what_opens_it() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (usual,) = _EXTRAS.findall((ROOT / "docker" / "Dockerfile").read_text())
    page = ROOT / "llmos_stream" / "docs" / "containers.md"
    files = [KUBERNETES / "components" / "object-store" / "kustomization.yaml", page]
    for file in files:
        (named,) = _EXTRAS.findall(file.read_text())
        assert set(named.split(",")) == {*usual.split(","), "s3"} <= extras.keys(), file
    opened_by = known_implementations["s3"]["class"].partition(".")[0]
    assert [requirement.partition(">")[0] for requirement in extras["s3"]] == [opened_by]
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pins[opened_by] == pins["fsspec"], "they go by the same number, and pip finds none that fits otherwise"

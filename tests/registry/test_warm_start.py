"""Version 0 with the weights of a file, or of another federation's version: what is taken, recorded and refused."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from llmos_stream import FederatedLearning
from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.cli.export import write_weights
from llmos_stream.codec import weights_digest
from llmos_stream.config import Settings, load
from llmos_stream.errors import ConfigError, LlmosError, NotFound
from llmos_stream.log.versions import Version, initial_weights, started_from
from llmos_stream.registry import find_version, open_store, warm_start_of
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.roles.aggregator import run_aggregator
from llmos_stream.roles.aggregator.role import Initial
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import quick_settings, running_federation
from tests.registry.aids import AT, version_of
from tests.replay.aids import replay_log, verdicts_of
from tests.roles.aids import publish_random


class _Model(nn.Module):
    """Tied weights, batch normalisation, a mask, and an integer buffer, which is not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("mask", torch.zeros(3))
        self.register_buffer("ids", torch.arange(5))


def _state(**changes: Tensor | None) -> dict[str, Tensor]:
    """A state dict of the model, as its owner saves it, with other values than a new one has."""
    torch.manual_seed(5)
    model = _Model()
    with torch.no_grad():
        model.get_buffer("norm.running_var").fill_(3.0)
        model.get_buffer("mask")[0] = float("-inf")
    state: dict[str, Tensor | None] = {name: value.clone() for name, value in model.state_dict().items()}
    state |= changes
    return {name: value for name, value in state.items() if value is not None}


def _saved(folder: Path, state: Mapping[str, Tensor]) -> Path:
    path = folder / "model.safetensors"
    save_file(dict(state), path)
    return path


def _settings(federation: str = "test", share: str = "all", registry: str | None = None, **start: Any) -> Settings:
    return quick_settings(federation, task={"share": share}, aggregator=start, registry={"url": registry})


async def _version_0(settings: Settings, broker: Broker | None = None) -> Version:
    warm = warm_start_of(settings)
    async with running_federation(_Model(), settings, broker, warm_start=warm) as running:
        return await running.version(0)


async def _refused(settings: Settings, broker: Broker | None = None) -> str:
    """The line that a start is refused with."""
    initial = Initial.of(_Model(), settings.task.share)
    async with Offload(1) as offload:
        with pytest.raises(LlmosError) as caught:
            await run_aggregator(
                broker or MemoryBroker(),
                settings,
                lambda: initial,
                offload,
                Shutdown(),
                warm_start=warm_start_of(settings),
            )
    assert isinstance(caught.value, ConfigError | NotFound)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("under", ["both names", "emb.weight", "head.weight"])
async def test_a_file_gives_the_weights_and_is_recorded(under: str, tmp_path: Path) -> None:
    state = _state()
    if under != "both names":
        del state[{"emb.weight": "head.weight", "head.weight": "emb.weight"}[under]]
    path = _saved(tmp_path, state)
    version = await _version_0(_settings(init=path))
    found = version.layout.unflatten(version.weights)
    expected = _state()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in found.items())
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert started_from(version.head) == {"file": "model.safetensors", "sha256": digest}
    assert initial_weights(version.head) == f"the weights of model.safetensors (SHA-256 {digest[:12]})"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"norm.weight": None}, "has no norm.weight"),
        ({"norm.running_var": None}, "has no norm.running_var"),
        ({"norm.weight": None, "norm.wieght": torch.ones(4)}, "has no norm.weight; did you mean norm.wieght?"),
        ({"norm.weight": None, "gain": torch.ones(4)}, "has no norm.weight; it has gain in its place"),
        ({"head.bias": torch.zeros(6)}, "has head.bias, which the task's model has not"),
        ({"norm.bais": torch.zeros(4)}, "has norm.bais, which the task's model has not; did you mean norm.bias?"),
        ({"norm.weight": torch.ones(5)}, "norm.weight has shape [5] in"),
        ({"norm.weight": torch.ones(4, dtype=torch.float16)}, "norm.weight is float16 in"),
        ({"norm.running_var": torch.ones(4, dtype=torch.float64)}, "norm.running_var is float64 in"),
        ({"norm.running_var": torch.ones(4, dtype=torch.int64)}, "norm.running_var is I64 in"),
        ({"head.weight": torch.ones(6, 4)}, "head.weight and emb.weight differ in"),
        ({"norm.weight": torch.tensor([1.0, 1.0, float("nan"), 1.0])}, "norm.weight is not finite in"),
        ({"norm.weight": torch.tensor([1.0, 1.0, float("inf"), 1.0])}, "norm.weight is not finite in"),
        ({"mask": torch.tensor([0.0, float("nan"), 0.0])}, "mask is not finite in"),
    ],
)
async def test_a_file_of_another_model_is_refused(changes: dict[str, Tensor | None], said: str, tmp_path: Path) -> None:
    line = await _refused(_settings(init=_saved(tmp_path, _state(**changes))))
    assert line.startswith("aggregator.init: ")
    assert said in line


async def test_the_state_of_a_wrapped_model_is_refused_with_its_prefix(tmp_path: Path) -> None:
    wrapped = {f"module.{name}": value for name, value in _state().items()}
    line = await _refused(_settings(init=_saved(tmp_path, wrapped)))
    assert "has no emb.weight; did you mean module.emb.weight? Save the model that is inside 'module'" in line


@pytest.mark.parametrize(("written", "said"), [(b"PK\x03\x04 a zip", "is no safetensors file"), (None, "cannot read")])
async def test_what_is_no_such_file_is_refused(written: bytes | None, said: str, tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    if written is not None:
        path.write_bytes(written)
    line = await _refused(_settings(init=path))
    assert line.startswith("aggregator.init: ")
    assert said in line


async def test_a_part_of_the_model_takes_its_part_of_the_file(tmp_path: Path) -> None:
    version = await _version_0(_settings(share="norm.*", init=_saved(tmp_path, _state())))
    assert {spec.name for spec in version.layout.tensors} == {
        "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var",
    }  # fmt: skip
    assert torch.equal(version.layout.unflatten(version.weights)["norm.running_var"], torch.full((4,), 3.0))


async def test_who_starts_again_with_the_same_file_goes_on(broker: Broker, federation: str, tmp_path: Path) -> None:
    """As a container does, and a standby."""
    settings = _settings(federation, init=_saved(tmp_path, _state()))
    for number in range(1, 3):
        async with running_federation(_Model(), settings, broker, warm_start=warm_start_of(settings)) as running:
            await publish_random(running, [number])
            version = await running.version(number)
        assert started_from(version.head) == started_from((await _first(broker, federation)).head)


async def _first(broker: Broker, federation: str) -> Version:
    async with running_federation(_Model(), quick_settings(federation), broker) as running:
        return await running.version(0)


async def test_versions_that_began_otherwise_are_not_begun_anew(tmp_path: Path) -> None:
    broker, path = MemoryBroker(), _saved(tmp_path, _state())
    await _version_0(_settings(), broker)
    line = await _refused(_settings(init=path), broker)
    assert "aggregator.init: federation test has versions already (the newest is 0), and began otherwise" in line
    assert "leave it out to go on from them, or begin a federation of another name" in line
    await _version_0(_settings("other", init=path), broker)
    save_file(_state(mask=torch.ones(3)), path)
    assert "and began otherwise" in await _refused(_settings("other", init=path), broker)
    assert "aggregator.init_from: " in await _refused(_settings("other", init_from="test"), broker)


@pytest.mark.parametrize(("named", "number"), [("ward", 2), ("ward:1", 1)])
async def test_a_version_of_another_federation(broker: Broker, federation: str, named: str, number: int) -> None:
    ward = f"{federation}-ward"
    async with running_federation(_Model(), quick_settings(ward), broker) as running:
        for each in range(1, 3):
            await running.version(each - 1)
            await running.publish(torch.full((running.initial.layout.numel,), 0.5))
        expected = await running.version(2)
        expected = await running.version(number)
    settings = _settings(federation, init_from=named.replace("ward", ward))
    version = await _version_0(settings, broker)
    assert version.head.weights_digest == expected.head.weights_digest
    digest = expected.head.weights_digest.hex()
    assert started_from(version.head) == {"federation": ward, "version": number, "weights_digest": digest}
    await _version_0(settings, broker)  # and again
    async with replay_log(broker, settings) as log:
        (verdict,) = await verdicts_of(log)
    assert verdict.outcome is RebuildOutcome.INITIAL
    assert verdict.detail == initial_weights(version.head)
    assert f"version {number} of federation {ward}" in verdict.detail


async def test_a_version_that_only_the_registry_has(tmp_path: Path) -> None:
    url = f"file://{tmp_path}"
    settings = _settings(init_from="ward:7", registry=url)
    saved = version_of(Initial.of(_Model(), "all").layout)
    open_store(settings.registry, "ward").save(saved, AT)
    version = await _version_0(settings)
    assert weights_digest(version.weights) == saved.head.weights_digest
    assert "the registry holds 7" in await _refused(_settings(init_from="ward:8", registry=url))
    assert (await _version_0(_settings(init_from="ward", registry=url))).head.weights_digest == (
        saved.head.weights_digest
    )


async def test_a_federation_that_there_is_not_is_told() -> None:
    line = await _refused(_settings(init_from="ward:7"))
    assert line.startswith("aggregator.init_from: ")
    assert "ward" in line


async def test_a_version_of_another_model_is_refused(tmp_path: Path) -> None:
    broker = MemoryBroker()
    async with running_federation(nn.BatchNorm1d(4), quick_settings("ward"), broker) as running:
        await running.version(0)
    line = await _refused(_settings(init_from="ward"), broker)
    assert "aggregator.init_from: version 0 of federation ward has no emb.weight" in line


async def test_another_share_of_the_same_model_begins_with_its_part() -> None:
    broker = MemoryBroker()
    whole = await _version_0(_settings("ward"), broker)
    part = await _version_0(_settings("wing", share="norm.*", init_from="ward"), broker)
    expected = whole.layout.unflatten(whole.weights)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in part.layout.unflatten(part.weights).items())


async def test_an_export_begins_a_federation(tmp_path: Path) -> None:
    async with running_federation(_Model(), quick_settings("ward")) as running:
        await publish_random(running, [1])
        found = await find_version(running.federation, load().registry, 1)
    path = tmp_path / "export.safetensors"
    write_weights(found, path, {"federation": "ward"})
    assert (await _version_0(_settings(init=path))).head.weights_digest == found.digest


def test_settings_name_one_start() -> None:
    with pytest.raises(ConfigError, match="init and init_from: name one of them"):
        load({"aggregator": {"init": "a.safetensors", "init_from": "ward"}})
    with pytest.raises(ConfigError, match="NAME or NAME:VERSION"):
        load({"aggregator": {"init_from": "ward:newest"}})


def test_a_script_of_its_own_begins_with_a_file(tmp_path: Path) -> None:
    model, other = nn.Linear(4, 2), nn.Linear(4, 2)
    path = tmp_path / "model.safetensors"
    save_file(other.state_dict(), path)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = [(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))]
    with FederatedLearning(model, batches, optimizer, init=path) as fl:
        state = fl.global_state()
    assert all(torch.equal(state[name], value) for name, value in other.state_dict().items())
    with pytest.raises(ConfigError, match="llmos-stream aggregator --init"):
        FederatedLearning(model, batches, optimizer, init=path, broker="127.0.0.1:1")
    save_file({"weight": torch.zeros(2, 4)}, path)
    with pytest.raises(ConfigError, match=r"aggregator\.init: .* has no bias"):
        FederatedLearning(model, batches, optimizer, init=path)

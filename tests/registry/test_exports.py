"""A version as its user gets it: an export loads by a plain `load_state_dict`, whatever is tied in the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from llmos_stream.broker import MemoryBroker
from llmos_stream.cli.export import write_state, write_weights
from llmos_stream.config import ClientSettings, Settings, TaskSettings
from llmos_stream.errors import ConfigError, NotFound
from llmos_stream.log.federation import Federation
from llmos_stream.registry import KeptVersion, find_version, open_store
from llmos_stream.testing import quick_settings, running_federation
from llmos_stream.training.sharing import shared_layout
from llmos_stream.training.tensor_task import TensorTask
from tests.registry.aids import AT, registry_settings, version_of

_STEP = 0.5


class _Tied(nn.Module):
    """Tied weights, batch normalisation with its counter, and a buffer that is no part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.emb = nn.Embedding(6, 4)
        self.bn = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 6, bias=False)
        self.head.weight = self.emb.weight
        self.register_buffer("scratch", torch.ones(3), persistent=False)


class _Shared(nn.Module):
    """A part under two names, and a buffer that two parts share."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
        self.second = self.first
        positions = torch.arange(3.0)
        for name in ("left", "right"):
            part = nn.Linear(2, 2)
            part.register_buffer("positions", positions)
            self.add_module(name, part)


class _Counted(_Tied):
    """It has an integer buffer, which is not shared."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("ids", torch.arange(5))


class _CountedTask(TensorTask):
    def model(self) -> nn.Module:
        return _Counted()


def make(task: TaskSettings, client: ClientSettings) -> _CountedTask:
    data = (torch.arange(64) % 6, torch.arange(64) % 6)
    return _CountedTask("counted", data, data, task, client)


async def _newest(model: nn.Module, settings: Settings, made: int = 1) -> KeptVersion:
    """The newest version of a federation of this model, found as exports find it. Every update adds the same."""
    async with running_federation(model, settings) as running:
        for number in range(1, made + 1):
            await running.version(number - 1)
            layout = running.initial.layout
            delta = torch.full((layout.numel,), _STEP)
            await running.publish(delta)
            await running.version(number)
        return await find_version(running.federation, settings.registry, None)


def _files(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def _exported(model: nn.Module, path: Path, **sections: Any) -> dict[str, Tensor]:
    version = await _newest(model, quick_settings(**sections))
    names = write_weights(version, path, {"version": "1"})
    state = load_file(path)
    assert len(state) == names
    return state


@pytest.mark.parametrize("make_model", [_Tied, _Shared], ids=["tied weights", "shared parts and buffers"])
async def test_an_export_loads_into_the_plain_model(make_model: Callable[[], nn.Module], tmp_path: Path) -> None:
    model = make_model()
    state = await _exported(model, tmp_path / "model.safetensors")
    fresh = make_model()
    fresh.load_state_dict(state)  # strict
    for name, parameter in model.named_parameters():
        assert torch.equal(fresh.get_parameter(name), parameter + _STEP), name


@pytest.mark.parametrize("full_every", [1, 4], ids=["full", "delta"])
async def test_a_delta_version_knows_all_names_too(full_every: int, tmp_path: Path) -> None:
    state = await _exported(_Tied(), tmp_path / "model.safetensors", versions={"full_every": full_every})
    _Tied().load_state_dict(state)


@pytest.mark.parametrize("share", ["trainable", "no-norm", "head.*", "emb.weight"])
async def test_a_part_of_a_model_is_exported_under_all_its_names(share: str, tmp_path: Path) -> None:
    state = await _exported(_Tied(), tmp_path / "model.safetensors", task={"share": share})
    assert state.keys() >= {"emb.weight", "head.weight"}
    found = _Tied().load_state_dict(state, strict=False)
    assert not found.unexpected_keys


@pytest.mark.parametrize("share", ["all", "head.*"])
async def test_a_complete_export_has_what_is_not_shared_too(share: str, tmp_path: Path) -> None:
    settings = quick_settings(task={"share": share, "entry": f"{__name__}:make"})
    path = tmp_path / "model.safetensors"
    version = await _newest(_Counted(), settings)
    names = write_state(version, path, {}, settings)
    state = load_file(path)
    _Counted().load_state_dict(state)
    assert names == len(state) == len(_Counted().state_dict())
    assert torch.equal(state["ids"], torch.arange(5))
    assert torch.equal(state["head.weight"], state["emb.weight"])


async def test_a_complete_export_of_another_model_is_refused(tmp_path: Path) -> None:
    version = await _newest(_Shared(), quick_settings())
    with pytest.raises(ConfigError, match="the model is not that of the version"):
        write_state(version, tmp_path / "m", {}, quick_settings(task={"entry": f"{__name__}:make"}))
    assert _files(tmp_path) == []


async def test_the_registry_keeps_all_names(tmp_path: Path) -> None:
    layout = shared_layout(_Tied(), "all")
    settings = registry_settings(f"file://{tmp_path / 'store'}")
    store = open_store(settings.registry, "ward")
    saved = version_of(layout)
    store.save(saved, AT)
    assert "head.weight" not in load_file(tmp_path / "store/ward/00000007/model.safetensors")  # as ever
    async with running_federation(_Tied(), quick_settings("ward")) as running:
        federation: Federation = running.federation
        await running.version(0)
        with pytest.raises(NotFound, match="version 7 is not in the log, which holds 0 to 0"):
            await find_version(federation, quick_settings("ward").registry, 7)
        with pytest.raises(NotFound, match="which holds 0 to 0; the registry holds 7"):
            await find_version(federation, settings.registry, 8)
        found = await find_version(federation, settings.registry, 7)
    assert (found.number, found.archived, found.digest) == (7, True, saved.head.weights_digest)
    write_weights(found, tmp_path / "model.safetensors", {})
    _Tied().load_state_dict(load_file(tmp_path / "model.safetensors"))


async def test_a_federation_that_only_the_registry_has(tmp_path: Path) -> None:
    settings = registry_settings(f"file://{tmp_path}")
    open_store(settings.registry, "ward").save(version_of(shared_layout(_Tied(), "all")), AT)
    async with running_federation(_Tied(), quick_settings("other"), MemoryBroker()) as running:
        there = running.federation
        elsewhere = Federation(
            there.broker, type(there.topics)("ward"), there.wire, there.offload, there.shutdown, there.clock
        )
        assert (await find_version(elsewhere, settings.registry, None)).number == 7

"""What is not shared: kept at the site over restarts, never sent, never measured centrally, served on request."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.cli.serve import _settle_personal
from llmos_stream.config import Settings
from llmos_stream.errors import ConfigError, StateError, TaskError
from llmos_stream.inference.model_pool import load_model, making
from llmos_stream.log.versions import Version
from llmos_stream.roles.aggregator import Initial
from llmos_stream.roles.client import ClientState, read_personal, run_client
from llmos_stream.roles.client.personal import PersonalPart
from llmos_stream.runtime import Offload, Shutdown
from llmos_stream.testing import RunningFederation, running_federation
from llmos_stream.training import Task, load_task, shared_layout
from llmos_stream.training.batches import Batch
from llmos_stream.training.model_evaluator import ModelEvaluator
from llmos_stream.training.personal import personal_names
from tests.federation import decoded_versions
from tests.roles.aids import settings_for

_FEDREP, _FEDBN = "body.*", "no-norm"
_made: list["_Model"] = []
_as_made: list["_Model"] = []  # likewise, but never trained


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(2, 4)
        self.norm = nn.BatchNorm1d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.norm(self.body(inputs)).relu())


class Personal(Task):
    def model(self) -> nn.Module:
        _made.append(_Model())
        _as_made.append(deepcopy(_made[-1]))
        return _made[-1]

    def train_batches(self, shard: int = 0) -> list[Batch]:
        inputs = torch.tensor([[0.0, 3.0], [1.0, 5.0], [2.0, 7.0], [3.0, 9.0]])
        return [(inputs, torch.tensor([0, 0, 1, 1]))]

    def test_batches(self, batch_size: int) -> list[Batch]:
        return self.train_batches()

    def example(self) -> Tensor:
        return torch.zeros(2)


class Frozen(Personal):
    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 2))
        model[0].requires_grad_(False)
        return model


def _settings(federation: str, share: str, name: str = "Personal") -> Settings:
    return settings_for(
        federation,
        task={"entry": f"{__name__}:{name}", "share": share},
        client={"id": "north", "wait_seconds": 0.1, "max_updates": 2},
    )


def _task(settings: Settings) -> Task:
    return load_task(settings.task, settings.client)


def _copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


async def _live(running: RunningFederation, folder: Path) -> nn.Module:
    """A client's life on `folder`, two updates long. Returns its model."""
    settings = running.settings
    _made.clear()
    _as_made.clear()
    async with Offload(2) as offload:
        with ClientState("north", folder) as state:
            await run_client(running.broker, settings, _task(settings), state, offload, Shutdown())
    (model,) = _made
    return model


async def _versions(broker: Broker, settings: Settings) -> list[Version]:
    async with broker.reader([f"{settings.federation.name}.models"], start="earliest") as reader:
        return [version async for version in decoded_versions(reader, settings.wire)]


@pytest.mark.parametrize(
    ("share", "own"),
    [(_FEDREP, {"head", "norm"}), (_FEDBN, {"norm"})],
    ids=["a head of one's own (FedRep)", "normalisation of one's own (FedBN)"],
)
async def test_it_survives_a_restart_and_never_travels(
    broker: Broker, federation: str, tmp_path: Path, share: str, own: set[str]
) -> None:
    settings = _settings(federation, share)
    async with running_federation(_Model(), settings, broker) as running:
        first = _copied(await _live(running, tmp_path))
        kept = read_personal(tmp_path)
        learnt = _copied(await _live(running, tmp_path))
    assert {name.partition(".")[0] for name in kept} == own
    assert all(torch.equal(kept[name], first[name]) for name in kept)
    assert not torch.equal(learnt["norm.weight"], kept["norm.weight"])
    # Two batches were trained on in each life: the second went on from the first.
    assert int(kept["norm.num_batches_tracked"]) == 2
    assert int(learnt["norm.num_batches_tracked"]) == 4
    for version in await _versions(broker, settings):
        assert not {spec.name.partition(".")[0] for spec in version.layout.tensors} & own


async def test_a_client_trains_its_own_part_first_and_then_what_is_shared_alone(
    federation: str, tmp_path: Path
) -> None:
    """FedRep (`client.head_epochs`), against a loop that is written by hand; the second life goes on from the first."""
    settings = _settings(federation, _FEDREP).changed(client={"head_epochs": 3, "epochs": 2, "max_updates": 1})
    ((inputs, targets),) = _task(settings).train_batches(0)
    assert isinstance(targets, Tensor)
    async with running_federation(_Model(), settings, MemoryBroker()) as running:
        expected: nn.Module | None = None
        for life in range(2):
            version = await running.version(life)
            trained = await _live(running, tmp_path)
            expected = expected or _as_made.pop()
            expected.load_state_dict(version.layout.unflatten(version.weights), strict=False)
            optimizer = _task(settings).optimizer(expected.requires_grad_(True))
            for epoch in range(5):
                for name, parameter in expected.named_parameters():
                    parameter.requires_grad_(name.startswith("body.") is (epoch >= 3))
                optimizer.zero_grad()
                nn.functional.cross_entropy(expected(inputs), targets).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            torch.testing.assert_close(dict(trained.state_dict()), dict(expected.state_dict()))
            assert all(parameter.requires_grad for parameter in trained.parameters())


def test_what_was_kept_is_put_into_a_new_model(tmp_path: Path) -> None:
    trained = _Model()
    PersonalPart(tmp_path, _FEDREP).keep(trained)
    restored = _Model()
    PersonalPart(tmp_path, _FEDREP).restore(restored)
    for name, tensor in restored.state_dict().items():
        assert torch.equal(tensor, trained.state_dict()[name]) == (not name.startswith("body."))


def test_a_model_that_is_shared_as_a_whole_leaves_no_file(tmp_path: Path) -> None:
    PersonalPart(tmp_path, "all").keep(_Model())
    PersonalPart(None, _FEDREP).keep(_Model())
    assert not list(tmp_path.iterdir())


def test_a_file_that_is_damaged_or_of_another_model_is_said(tmp_path: Path) -> None:
    part = PersonalPart(tmp_path, _FEDREP)
    part.keep(_Model())
    with pytest.raises(StateError, match=r"personal\.safetensors: the model is of another kind: .*; delete it"):
        PersonalPart(tmp_path, _FEDBN).restore(_Model())
    (tmp_path / "personal.safetensors").write_bytes(b"rubbish")
    with pytest.raises(StateError, match=r"personal\.safetensors is damaged .*; delete it"):
        part.restore(_Model())


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (_FEDREP, r"task\.share: norm\.weight, norm\.bias, norm\.running_mean and 3 more of the model are each site's"),
        (_FEDBN, r"task\.share: norm\.weight, norm\.bias, norm\.running_mean and 1 more of"),
        ("trainable", r"task\.share: norm\.running_mean, norm\.running_var of"),
    ],
)
def test_an_evaluator_does_not_measure_an_untrained_part(share: str, said: str) -> None:
    settings = _settings("refused", share)
    with pytest.raises(ConfigError, match=said):
        ModelEvaluator(_task(settings), settings.task, 8)


def test_what_is_frozen_is_nobodys_own() -> None:
    settings = _settings("frozen", "trainable", "Frozen")
    assert personal_names(_task(settings).model(), "trainable") == []
    ModelEvaluator(_task(settings), settings.task, 8)


async def test_predictions_are_made_with_the_sites_own_part(broker: Broker, federation: str, tmp_path: Path) -> None:
    settings = _settings(federation, _FEDREP)
    async with running_federation(_Model(), settings, broker) as running:
        trained = await _live(running, tmp_path)
    *_, newest = await _versions(broker, settings)
    task = _task(settings)
    _settle_personal(task, _FEDREP, tmp_path)
    served = load_model(making(task, _FEDREP), newest).model.state_dict()
    head = {name: tensor for name, tensor in trained.state_dict().items() if not name.startswith("body.")}
    assert all(torch.equal(served[name], tensor) for name, tensor in head.items())
    assert torch.equal(served["body.weight"], newest.layout.unflatten(newest.weights)["body.weight"])


def test_a_service_without_it_says_that_a_part_is_untrained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = _settings("served", _FEDREP)
    with caplog.at_level(logging.WARNING, "llmos_stream"):
        _settle_personal(_task(settings), _FEDREP, None)
    assert "--client-state names the state folder" in caplog.text
    with pytest.raises(StateError, match="holds no part of a model"):
        _settle_personal(_task(settings), _FEDREP, tmp_path)
    PersonalPart(tmp_path, _FEDBN).keep(_Model())
    with pytest.raises(TaskError, match="the model is of another kind"):
        _settle_personal(_task(settings), _FEDREP, tmp_path)


def test_a_version_0_has_none_of_it() -> None:
    settings = _settings("begun", _FEDREP)
    assert Initial.of(_Model(), _FEDREP).layout.digest == shared_layout(_task(settings).model(), _FEDREP).digest

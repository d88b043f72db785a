"""What is not shared, in the Python API: kept over restarts, measured with, and trained first if asked for."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from llmos_stream import FederatedLearning, Participant
from llmos_stream.errors import ConfigError, StateError, TaskError
from llmos_stream.federated.arrays import SharedArrays
from llmos_stream.training.local import evaluate

_SHARE = "body.*"


class _Model(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.body = nn.Linear(2, 4)
        self.head = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Any:
        return self.head(self.body(inputs).relu())


_BATCHES = [(torch.tensor([[0.0, 3.0], [1.0, 5.0], [2.0, 7.0], [3.0, 9.0]]), torch.tensor([0, 0, 1, 1]))] * 3


def _settings(folder: Path | None, **client: Any) -> dict[str, Any]:
    return {"task": {"share": _SHARE}, "client": {"id": "north", "state_dir": folder, **client}}


def _learning(model: nn.Module, folder: Path | None, **client: Any) -> FederatedLearning:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return FederatedLearning(model, _BATCHES, optimizer, validation=_BATCHES[:1], settings=_settings(folder, **client))


def _head(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items() if name.startswith("head.")}


def test_a_sites_own_head_is_there_after_a_restart_and_measured_with(tmp_path: Path) -> None:
    model = _Model(1)
    made = _head(model)
    with _learning(model, tmp_path) as fl:
        fl.train(0)
    trained = _head(model)
    assert not torch.equal(trained["head.weight"], made["head.weight"])

    again, as_made = _Model(2), _Model(2)
    with _learning(again, tmp_path) as fl:
        for name, tensor in _head(again).items():
            assert torch.equal(tensor, trained[name])
        with fl.update() as update:
            update.skip()
        as_made.body.load_state_dict(again.body.state_dict())
    assert update.evaluation is not None
    expected, untrained = evaluate(again, _BATCHES[:1]), evaluate(as_made, _BATCHES[:1])
    assert update.evaluation.metrics["loss"] == pytest.approx(expected["loss"])
    assert update.evaluation.metrics["loss"] != pytest.approx(untrained["loss"])


def test_one_without_a_folder_or_of_another_model_is_not_taken(tmp_path: Path) -> None:
    with _learning(_Model(1), None) as fl:
        fl.train(0)
    with _learning(_Model(1), tmp_path) as fl:
        fl.train(0)
    with pytest.raises(StateError, match="the model is of another kind"):
        FederatedLearning(
            nn.ModuleDict({"body": nn.Linear(2, 2), "tail": nn.Linear(2, 2)}), settings=_settings(tmp_path)
        )


def test_the_head_is_trained_first_and_then_the_body_alone() -> None:
    """FedRep, against a loop that is written by hand."""
    model = _Model(3)
    with _learning(model, None, head_epochs=2) as fl:
        fl.train(0)
    oracle = _Model(3)
    optimizer = torch.optim.SGD(oracle.parameters(), lr=0.1, momentum=0.9)
    for trained, frozen in ((oracle.head, oracle.body), (oracle.head, oracle.body), (oracle.body, oracle.head)):
        trained.requires_grad_(True)
        frozen.requires_grad_(False)
        for inputs, targets in _BATCHES:
            optimizer.zero_grad()
            nn.functional.cross_entropy(oracle(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, oracle.state_dict()[name])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_without_a_part_of_its_own_there_is_no_head_to_train_first() -> None:
    settings = {"client": {"head_epochs": 1}}
    with pytest.raises(ConfigError, match=r"client\.head_epochs: with task\.share 'all'"):
        FederatedLearning(_Model(1), settings=settings)


def _start() -> dict[str, Any]:
    return {"body": np.zeros(3), "head": np.zeros((2, 2), np.float32), "seen": np.array([0, 0])}


def test_a_participants_own_arrays_are_there_after_a_restart(tmp_path: Path) -> None:
    with Participant(_start(), settings=_settings(tmp_path) | {"task": {"share": "body"}}) as participant:
        weights = participant.receive()
        weights["body"] += 1
        trained = weights | {"head": np.full((2, 2), 5, np.float32), "seen": np.array([3, 4])}
        participant.send(trained, num_examples=4)
    with Participant(_start(), settings=_settings(tmp_path) | {"task": {"share": "body"}}) as participant:
        weights = participant.receive()
    assert {name: np.asarray(array).tolist() for name, array in weights.items()} == {
        "body": [0.0, 0.0, 0.0],  # a federation of its own begins anew
        "head": [[5.0, 5.0], [5.0, 5.0]],
        "seen": [3, 4],
    }
    assert np.asarray(weights["head"]).dtype == np.float32


def test_a_participant_that_shares_all_keeps_nothing(tmp_path: Path) -> None:
    with Participant(_start(), settings={"client": {"id": "north", "state_dir": tmp_path}}) as participant:
        participant.send(participant.receive(), num_examples=4)
    assert not (tmp_path / "personal.safetensors").exists()


def test_arrays_of_another_kind_and_patterns_that_match_none_are_said() -> None:
    arrays = SharedArrays(_start(), share="bo*")
    assert [spec.name for spec in arrays.layout.tensors] == ["body"]
    for other in (
        {"head": torch.zeros(2, 2)},
        arrays.own() | {"head": torch.zeros(3)},
        arrays.own() | {"x": torch.ones(1)},
    ):
        with pytest.raises(TaskError, match=r"the weights are of another kind: (head|seen|x)"):
            arrays.put(other)
    with pytest.raises(
        TaskError, match=r"task\.share: 'tail' matches no floating point array, but there are body, head"
    ):
        SharedArrays(_start(), share="body,tail")

"""Names of tensors: wrappers are seen through, and what makes two models different is said."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_stream.codec import Layout
from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer, shared_tensors
from llmos_stream.training.differences import difference
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.training.states import load_state, state_of


def _model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2)))


def _compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model, backend="eager")  # type: ignore[return-value]  # a module for a module


def _inner_compiled(model: nn.Sequential) -> nn.Module:
    model[1] = _compiled(model[1])
    return model


def _of(model: nn.Module) -> Layout:
    return Layout.of(shared_tensors(model, "all"))


class _HasModule(nn.Module):
    """A model whose own part is called as the one inside a wrapper."""

    def __init__(self) -> None:
        super().__init__()
        self.module = nn.Linear(2, 2)


def _without_bias(module: nn.Module, state: dict[str, Any], prefix: str, local_metadata: object) -> None:
    del state[f"{prefix}bias"]


@pytest.mark.parametrize(
    "wrap",
    [
        _compiled,
        nn.DataParallel,
        lambda model: nn.DataParallel(_compiled(model)),
        lambda model: _compiled(nn.DataParallel(model)),
        _inner_compiled,
        lambda model: nn.DataParallel(_inner_compiled(model)),
        torch.optim.swa_utils.AveragedModel,
    ],
    ids=["compiled", "parallel", "parallel of compiled", "compiled parallel", "a part", "both", "averaged"],
)
def test_a_wrapped_model_has_the_layout_of_the_plain_one(wrap: Callable[[nn.Module], nn.Module]) -> None:
    wrapped = wrap(_model())
    assert _of(wrapped) == _of(_model())
    state = state_of(_model())
    load_state(wrapped, {**state_of(wrapped), **state})
    assert all(torch.equal(state_of(wrapped)[name], value) for name, value in state.items())


def test_a_part_that_is_called_module_keeps_its_name() -> None:
    assert list(shared_tensors(_HasModule(), "all")) == ["module.weight", "module.bias"]


def test_tensors_that_share_their_memory_are_tied() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model[1].weight.data = model[0].weight.data
    assert list(shared_tensors(model, "all")) == ["0.weight", "0.bias", "1.bias"]


def test_a_trained_parameter_that_the_state_leaves_out_is_refused() -> None:
    model = _HasModule()
    model.module.register_state_dict_post_hook(_without_bias)  # type: ignore[no-untyped-call]
    with pytest.raises(TaskError, match=r"module\.bias cannot be shared: it is not in the model's state dict"):
        shared_tensors(model, "all")


@pytest.mark.parametrize(
    ("mine", "said"),
    [
        (nn.ModuleDict({"net": _model()}), "all names begin with 'net.' here: hand in the model inside"),
        (nn.Sequential(_model()[0]), r"1\.0\.weight is absent here and float32 \[2\] there"),
        (nn.Sequential(nn.Linear(3, 2), _model()[1]), r"0\.weight is float32 \[2, 3\] here and float32 \[2, 2\] there"),
        (_model().double(), r"0\.weight is float64 \[2, 2\] here and float32 \[2, 2\] there"),
    ],
    ids=["prefix", "absent", "shape", "dtype"],
)
def test_the_difference_between_models_is_said(mine: nn.Module, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(difference(_of(mine), _of(_model())))


def test_layouts_that_differ_in_kinds_alone_point_to_an_older_log() -> None:
    tensors = shared_tensors(_model(), "all")
    new = Layout.of(tensors, {name for name in tensors if "running" in name})
    assert "treated buffers as parameters" in difference(new, Layout.of(tensors))


def test_a_state_of_another_model_is_refused_and_nothing_written() -> None:
    model = _model()
    before = {name: tensor.clone() for name, tensor in state_of(model).items()}
    with pytest.raises(TaskError, match=r"0\.weight \(\(2, 2\), not \(3, 3\)\)"):
        load_state(model, {**before, "0.weight": torch.zeros(3, 3)})
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_of(model).items())


class _Mask(nn.Module):
    mask: Tensor

    def __init__(self, *, changes: float | None) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.changes = changes
        self.register_buffer("mask", torch.tensor([-torch.inf, torch.nan, 1.0]))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.changes is not None:
            self.mask = self.mask.clone()
            self.mask[2] = self.changes
        outputs: Tensor = self.linear(inputs)
        return outputs


def _local(model: nn.Module) -> LocalModel:
    return LocalModel(LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1)), "all")


def test_what_is_not_finite_and_not_changed_stays_bit_for_bit() -> None:
    local = _local(_Mask(changes=None))
    weights = local.weights()
    trained = local.train(weights, 0, [[(torch.ones(1, 2), torch.tensor([0]))]])
    assert trained.buffers is not None
    _, mask = local.layout.parts(weights)
    assert torch.equal(trained.buffers.view(torch.int32), mask.view(torch.int32))
    assert trained.delta.isfinite().all()
    assert trained.delta.any()


def test_a_tensor_that_training_made_infinite_is_named_with_what_it_was() -> None:
    local = _local(_Mask(changes=torch.inf))
    with pytest.raises(TaskError, match=r"training made mask not finite: 1 became inf; lower client\.lr"):
        local.train(local.weights(), 0, [[(torch.ones(1, 2), torch.tensor([0]))]])


def test_a_version_that_the_models_dtype_cannot_hold_is_named() -> None:
    local = _local(nn.Linear(2, 2).half())
    with pytest.raises(TaskError, match=r"the version has 70000 in bias, which float16 cannot hold"):
        local.load(torch.tensor([0, 0, 0, 0, 70000.0, 1]))


def test_a_loss_that_is_not_finite_names_a_parameter_that_is_not_either() -> None:
    local = _local(nn.Linear(2, 2))
    with pytest.raises(TaskError, match=r"batch 1 \(bias of the model is not finite\)"):
        local.train(torch.tensor([0, 0, 0, 0, torch.nan, 1]), 0, [[(torch.ones(1, 2), torch.tensor([0]))]])

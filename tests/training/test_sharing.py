"""Which tensors are shared, and that putting values back changes the very model an optimiser works on."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import prune

from llmos_stream.errors import TaskError
from llmos_stream.training import LocalTrainer, load_, shared_layout, shared_tensors
from llmos_stream.training.shared_model import LocalModel


class HomemadeRMSNorm(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))


class Renamed(nn.BatchNorm1d):
    """A norm that only its base class gives away."""


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.body = nn.Linear(3, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


class WithBuffers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("kept", torch.ones(2))
        self.register_buffer("scratch", torch.ones(2), persistent=False)
        self.register_buffer("counter", torch.zeros(2, dtype=torch.long))
        self.register_buffer("mask", torch.zeros(2, dtype=torch.bool))
        self.linear = nn.Linear(2, 2)


class WithExtraState(nn.Linear):
    def get_extra_state(self) -> Tensor:
        return torch.ones(7)

    def set_extra_state(self, state: Any) -> None: ...


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in tensors.items()}


def _lora() -> nn.Module:
    model = nn.ModuleDict({"q": nn.Linear(4, 4), "q_lora_A": nn.Linear(4, 2), "q_lora_B": nn.Linear(2, 4)})
    model["adapter_norm"] = nn.BatchNorm1d(4)
    for parameter in model["q"].parameters():
        parameter.requires_grad_(False)
    return model


def test_batch_norm_statistics_are_shared_and_their_counter_is_not() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert list(shared_tensors(model, "all")) == [
        "0.weight", "0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var",
    ]  # fmt: skip


def test_only_persistent_floating_point_buffers_are_shared() -> None:
    assert list(shared_tensors(WithBuffers(), "all")) == ["kept", "linear.weight", "linear.bias"]


def test_extra_state_is_not_a_shared_tensor() -> None:
    assert list(shared_tensors(WithExtraState(2, 2), "all")) == ["weight", "bias"]


def test_tied_parameters_are_one_tensor_that_either_name_selects() -> None:
    model = Tied()
    assert list(shared_tensors(model, "all")) == ["embed.weight", "body.weight", "body.bias"]
    assert list(shared_tensors(model, "head.*")) == ["embed.weight"]
    live = shared_tensors(model, "all")
    load_(live, {**_copies(live), "embed.weight": torch.full((5, 3), 7.0)})
    assert torch.equal(model.head.weight, torch.full((5, 3), 7.0))


def test_a_module_used_twice_is_shared_once() -> None:
    layer = nn.Linear(2, 2)
    assert list(shared_tensors(nn.Sequential(layer, layer), "all")) == ["0.weight", "0.bias"]


def test_trainable_takes_parameters_with_gradients_alone() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    model[0].weight.requires_grad_(False)
    model.register_buffer("scale", torch.ones(2, requires_grad=True))
    assert list(shared_tensors(model, "trainable")) == ["0.bias", "1.weight", "1.bias"]


def test_adapters_takes_parameters_by_name_and_no_buffers() -> None:
    assert list(shared_tensors(_lora(), "adapters")) == [
        "q_lora_A.weight", "q_lora_A.bias", "q_lora_B.weight", "q_lora_B.bias",
        "adapter_norm.weight", "adapter_norm.bias",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "norm",
    [
        nn.BatchNorm1d(4), nn.BatchNorm2d(4), nn.BatchNorm3d(4), nn.SyncBatchNorm(4), nn.LazyBatchNorm1d(),
        nn.InstanceNorm1d(4, affine=True, track_running_stats=True), nn.InstanceNorm2d(4, affine=True),
        nn.InstanceNorm3d(4, affine=True), nn.LayerNorm(4), nn.GroupNorm(2, 4), nn.RMSNorm(4),
        HomemadeRMSNorm(4), Renamed(4),
    ],
    ids=lambda norm: type(norm).__name__,
)  # fmt: skip
def test_no_norm_leaves_out_every_kind_of_norm(norm: nn.Module) -> None:
    model = nn.ModuleDict({"linear": nn.Linear(4, 4), "norm": norm})
    assert list(shared_tensors(model, "no-norm")) == ["linear.weight", "linear.bias"]


@pytest.mark.parametrize(
    ("share", "names"),
    [
        ("0.*", ["0.weight", "0.bias"]),
        ("*.bias", ["0.bias", "1.bias"]),
        ("1.running_*, 0.bias", ["0.bias", "1.running_mean", "1.running_var"]),
        ("1.*,1.weight", ["1.weight", "1.bias", "1.running_mean", "1.running_var"]),
    ],
)
def test_globs_select_names_in_the_order_of_the_model(share: str, names: list[str]) -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    assert list(shared_tensors(model, share)) == names


@pytest.mark.parametrize("share", ["trainabel", "0.*,decoder.*", "adapters", "", ","])
def test_a_share_that_matches_nothing_names_some_of_the_tensors(share: str) -> None:
    model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(4)))
    with pytest.raises(TaskError, match=r"task\.share: .* 0\.weight, 0\.bias, .* and 3 more"):
        shared_tensors(model, share)


def test_a_model_without_tensors_says_so() -> None:
    with pytest.raises(TaskError, match="no floating point tensors"):
        shared_tensors(nn.ReLU(), "all")


def test_a_lazy_parameter_is_refused_by_name() -> None:
    with pytest.raises(TaskError, match=r"1\.weight cannot be shared: it is a lazy parameter"):
        shared_tensors(nn.Sequential(nn.Linear(2, 2), nn.LazyLinear(2)), "all")


def test_tensors_are_live_and_a_snapshot_is_not() -> None:
    model = nn.Linear(2, 2)
    live = shared_tensors(model, "all")
    before = _copies(live)
    with torch.no_grad():
        model.weight.zero_()
    assert torch.equal(live["weight"], torch.zeros(2, 2))
    assert before["weight"].all()


@pytest.mark.parametrize(
    "make", [lambda p: torch.optim.SGD(p, 0.1, momentum=0.9), lambda p: torch.optim.AdamW(p, 0.1)], ids=["sgd", "adamw"]
)
def test_an_optimiser_goes_on_training_what_was_loaded(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = nn.Linear(2, 3)
    optimizer = make(model.parameters())
    live = shared_tensors(model, "all")
    start = {"weight": torch.full((3, 2), 5.0), "bias": torch.zeros(3)}
    for _ in range(2):  # the second time with state in the optimiser
        load_(live, start)
        assert torch.equal(model.weight, start["weight"])
        cross_entropy(model(torch.ones(1, 2)), torch.tensor([0])).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        assert not torch.equal(model.weight, start["weight"])
        assert torch.equal(live["weight"], model.weight)
        assert model.weight.requires_grad


def test_values_are_cast_into_the_dtype_of_the_model() -> None:
    model = nn.Linear(2, 2).bfloat16()
    live = shared_tensors(model, "all")
    assert {tensor.dtype for tensor in live.values()} == {torch.bfloat16}
    load_(live, {"weight": torch.full((2, 2), 1.00001), "bias": torch.full((2,), 0.5)})
    assert model.weight.dtype is torch.bfloat16
    assert torch.equal(model.weight.float(), torch.ones(2, 2))
    assert torch.equal(model.bias.float(), torch.full((2,), 0.5))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight": torch.zeros(2, 2)}, "bias \\(\\(2,\\), not absent\\)"),
        (
            {"weight": torch.zeros(2, 2), "bias": torch.zeros(2), "scale": torch.zeros(1)},
            "scale \\(absent, not \\(1,\\)\\)",
        ),
        ({"weight": torch.zeros(2, 2), "bias": torch.zeros(1)}, "bias \\(\\(2,\\), not \\(1,\\)\\)"),
    ],
    ids=["missing", "unknown", "shape"],
)
def test_values_that_do_not_fit_are_refused_before_anything_is_written(values: dict[str, Tensor], message: str) -> None:
    live = shared_tensors(nn.Linear(2, 2), "all")
    before = _copies(live)
    with pytest.raises(TaskError, match=message):
        load_(live, values)
    assert all(torch.equal(live[name], before[name]) for name in live)


def test_a_layout_knows_the_further_names_of_what_is_shared() -> None:
    layer = nn.Linear(2, 2)
    assert shared_layout(Tied(), "all").tied == {"head.weight": "embed.weight"}
    assert shared_layout(Tied(), "body.*").tied == {}
    assert shared_layout(nn.Sequential(layer, layer), "all").tied == {"1.weight": "0.weight", "1.bias": "0.bias"}
    untied = Tied()
    untied.head.weight = nn.Parameter(untied.embed.weight.detach().clone())
    assert shared_layout(untied, "all").tied == {}


class _Remembering(nn.Module):
    """Its buffer takes its shape from the batches, as an observer's of quantisation does."""

    memory: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("memory", torch.zeros(0, 3))

    def forward(self, inputs: Tensor) -> Any:
        self.memory = torch.cat([self.memory, inputs])
        return self.linear(inputs)


def test_a_tensor_whose_shape_training_changes_is_named() -> None:
    model = _Remembering()
    local = LocalModel(LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1)), "all")
    batches = [(torch.ones(4, 3), torch.tensor([0, 1, 1, 0]))]
    with pytest.raises(TaskError, match=r"memory has become of shape \(4, 3\), from \(0, 3\), since the model joined"):
        local.train(local.weights(), 0, [batches])
    model = _Remembering()
    local = LocalModel(LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1)), "linear.*")
    assert local.train(local.weights(), 0, [batches]).num_examples == 4


def test_a_tensor_that_goes_in_training_is_named() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    local = LocalModel(LocalTrainer(model, torch.optim.SGD(model.parameters(), lr=0.1)), "all")
    prune.l1_unstructured(model[0], "weight", 0.5)  # type: ignore[no-untyped-call]  # torch leaves it without types
    with pytest.raises(TaskError, match=r"0\.weight has gone since the model joined"):
        local.weights()

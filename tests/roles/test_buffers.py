"""A model with buffers through a whole federation: clients, versions in a chain, a restart, and replays."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from llmos_stream.broker import Broker, MemoryBroker
from llmos_stream.codec import Layout
from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import ConfigError, TaskError
from llmos_stream.inference.model_pool import load_model, making
from llmos_stream.log.versions import Version
from llmos_stream.replay.rebuild import RebuildOutcome
from llmos_stream.replay.whatif import Change, WhatIf
from llmos_stream.roles.aggregator import Initial
from llmos_stream.testing import running_federation
from llmos_stream.training import LocalTrainer, Task, shared_layout
from llmos_stream.training.model_evaluator import ModelEvaluator
from llmos_stream.training.shared_model import LocalModel
from llmos_stream.types import CodecId, CodecSpec, VersionKind
from tests.replay.aids import outcomes, replay_log, verdicts_of
from tests.roles.aids import FLOAT32, settings_for
from tests.wire.heads import VERSION

NAMED = {
    "w": torch.zeros(40),
    "var": torch.full((3,), 1e-3),
    "mask": torch.full((2, 2), -math.inf).triu(1),
}
LAYOUT = Layout.of(NAMED, ["var", "mask"])
VERSIONS = 7
INT8 = CodecSpec(CodecId.INT8, {"block": 32, "stochastic": 0})
RULES: dict[str, dict[str, Any]] = {
    "adam": {"aggregation": {"buffer_size": 2}, "server_optimizer": {"name": "adam", "lr": 0.1}},
    "momentum": {"aggregation": {"buffer_size": 2}, "server_optimizer": {"momentum": 0.9}},
    "fedasync": {"aggregation": {"strategy": "fedasync"}},
    "median": {"aggregation": {"strategy": "median", "buffer_size": 3, "one_of_a_client": False}},
    "norm_bound": {"aggregation": {"strategy": "norm_bound", "buffer_size": 3, "one_of_a_client": False}},
}


def _initial() -> Initial:
    return Initial(LAYOUT, LAYOUT.flatten(NAMED))


def _values(number: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(number)
    return {**NAMED, "w": torch.randn(40, generator=generator), "var": torch.rand(3, generator=generator) * 1e-3}


@pytest.mark.parametrize("codec", [FLOAT32, INT8], ids=["f32", "int8"])
@pytest.mark.parametrize("rule", RULES)
async def test_buffers_stay_in_range_and_a_replay_makes_the_same_versions(
    federation: str, rule: str, codec: CodecSpec
) -> None:
    broker = MemoryBroker()
    settings = settings_for(
        federation, **RULES[rule], versions={"full_every": 4, "codec": "int4"}, wire={"memory_bytes": 1}
    )
    each = settings.aggregation.buffer_size or 1 if rule != "fedasync" else 1
    sent = 0
    for numbers in (range(1, 4), range(4, VERSIONS)):  # the aggregator is another one from version 4 on
        async with running_federation(_initial(), settings, broker) as running:
            await running.version(numbers.start - 1)
            for number in numbers:
                for _ in range(each):
                    await running.publish(
                        _values(sent), num_examples=10 + sent, sequence=sent, base_version=number - 1, codec=codec
                    )
                    sent += 1
                version = await running.version(number)
                assert version.head.kind is (VersionKind.FULL if number % 4 == 0 else VersionKind.DELTA)
                buffers = LAYOUT.unflatten(version.weights)
                assert torch.equal(buffers["mask"], NAMED["mask"])
                assert ((buffers["var"] >= 0) & (buffers["var"] <= 1e-3)).all()
                assert not torch.equal(buffers["var"], NAMED["var"])
    async with replay_log(broker, settings) as log:
        verdicts = await verdicts_of(log)
        assert outcomes(verdicts) == [RebuildOutcome.INITIAL] + [RebuildOutcome.MATCH] * (VERSIONS - 1)
        same = await WhatIf(log, Change(settings={"staleness": {"maximum": 7}})).run(log.index.numbers)
        assert same.digest == same.original_digest
        other = await WhatIf(log, Change(settings={"aggregation": {"strategy": "fedbuff"}})).run(log.index.numbers)
        assert not other.refused
        var = LAYOUT.unflatten(other.final.weights)["var"]
        assert ((var >= 0) & (var <= 1e-3)).all()


async def test_an_update_that_breaks_a_buffer_is_refused_and_the_run_goes_on(broker: Broker, federation: str) -> None:
    async with running_federation(_initial(), settings_for(federation), broker) as running:
        await running.version(0)
        await running.publish({**_values(0), "var": torch.tensor([0.1, math.nan, 0.1])})
        await running.publish(_values(1))
        version = await running.version(1)
        assert len(version.head.manifest) == 1
        assert torch.equal(LAYOUT.unflatten(version.weights)["var"], _values(1)["var"])


class _Measuring(nn.Module):
    """A batch norm and a mask, in half precision where that is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("mask", torch.full((4,), -math.inf))
        self.register_buffer("third", torch.tensor(1 / 3))

    def forward(self, inputs: Tensor) -> Tensor:
        normed: Tensor = self.norm(inputs)
        return normed


def _local(model: nn.Module, lr: float = 0.1) -> LocalModel:
    optimizer = torch.optim.SGD(model.parameters(), lr)
    return LocalModel(LocalTrainer(model, optimizer, nn.functional.mse_loss), "all")


def test_the_buffers_of_a_model_are_told_from_its_parameters() -> None:
    layout = shared_layout(_Measuring(), "all")
    assert [spec.name for spec in layout.tensors if spec not in layout.buffers] == ["norm.weight", "norm.bias"]
    assert [spec.name for spec in layout.buffers] == ["mask", "third", "norm.running_mean", "norm.running_var"]
    assert shared_layout(_Measuring(), "trainable").buffers == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_client_sends_what_it_measured_and_leaves_the_rest_as_it_was(dtype: torch.dtype) -> None:
    model = _Measuring().to(dtype)
    local = _local(model)
    weights = local.layout.flatten({name: tensor.float() for name, tensor in _named(_Measuring()).items()})
    inputs = torch.randn(16, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    trained = local.train(weights, 0, [[(inputs, inputs)]])
    assert trained.buffers is not None
    assert trained.delta.numel() == local.layout.parameters
    assert trained.delta.isfinite().all()
    found = local.layout.unflatten(torch.cat([trained.delta, trained.buffers]))
    assert torch.equal(found["mask"], torch.full((4,), -math.inf, dtype=dtype))
    assert trained.buffers[4] == torch.tensor(1 / 3)  # and not what half precision makes of it
    assert torch.equal(found["norm.running_var"], model.get_buffer("norm.running_var"))


def test_what_training_breaks_is_told_by_its_name() -> None:
    local = _local(_Measuring(), lr=math.inf)
    inputs = torch.randn(16, 4)
    with pytest.raises(TaskError, match=r"norm\.weight not finite: 1 became -?(nan|inf); lower client\.lr"):
        local.train(local.weights(), 0, [[(inputs, 2 * inputs)]])


def _named(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


async def test_a_log_of_a_release_that_knew_no_buffers_is_refused_in_one_line(broker: Broker, federation: str) -> None:
    settings, old = settings_for(federation), Layout.of(NAMED)
    async with running_federation(Initial(old, old.flatten(NAMED)), settings, broker) as running:
        await running.version(0)
    with pytest.raises(ConfigError, match="begun by an older version, which treated buffers as parameters") as caught:
        async with running_federation(_initial(), settings, broker) as running:
            await running.task
    assert "\n" not in str(caught.value)


class _Task(Task):
    """Whatever a version of `_Measuring` makes of all ones."""

    def model(self) -> nn.Module:
        return _Measuring()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.mse_loss(outputs, targets)

    def train_batches(self, shard: int = 0) -> list[tuple[Tensor, Tensor]]:
        return []

    def test_batches(self, batch_size: int) -> list[tuple[Tensor, Tensor]]:
        return [(torch.ones(2, 4), torch.zeros(2, 4))]


def test_a_version_of_a_release_that_knew_no_buffers_is_evaluated_and_served() -> None:
    values = _named(_Measuring()) | {"norm.bias": torch.full((4,), 3.0), "norm.running_mean": torch.ones(4)}
    old = Layout.of(dict(sorted(values.items())))
    task, weights = _Task(TaskSettings(), ClientSettings()), old.flatten(values)
    assert old.tensors != shared_layout(task.model(), "all").tensors
    evaluation = ModelEvaluator(task, TaskSettings(), 2).evaluate(7, old, weights)
    assert evaluation.metrics["loss"] == pytest.approx(9.0)
    head = replace(VERSION, layout_digest=old.digest, tensors=old.tensors)
    loaded = load_model(making(task, "all"), Version(head, old, weights))
    assert torch.allclose(loaded.model(torch.ones(2, 4)), torch.full((2, 4), 3.0))

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.core.flat import l2_norm
from llmos_stream.errors import ConfigError
from llmos_stream.simulation.data import SplitData
from llmos_stream.simulation.experiment import make_experiment
from llmos_stream.simulation.job import Job, Trainer
from llmos_stream.simulation.loop_trainer import LoopTrainer
from llmos_stream.simulation.trainers import make_trainer
from llmos_stream.training import load_task
from llmos_stream.training.models import mlp
from llmos_stream.training.synthetic import BlobsTask

_HERE = f"{__name__}:"


class Wide(BlobsTask):
    """The blobs, with a model that `options` choose."""

    def model(self) -> nn.Module:
        linear = mlp(16, 8, 4, seed=1)
        match self.options.get("model"):
            case "convolution":
                return nn.Sequential(
                    nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)
                )
            case "image":
                return nn.Sequential(
                    nn.Conv2d(1, 3, (3, 2), (1, 2), padding=(2, 1), dilation=(2, 1)),
                    nn.ReLU(),
                    nn.MaxPool2d(2, 1),
                    nn.Conv2d(3, 2, 2, bias=False),
                    nn.Flatten(),
                    nn.ReLU(),
                    nn.Linear(4, 4),
                )
            case "norm":
                return nn.Sequential(linear, nn.BatchNorm1d(4))
            case "dropout":
                return nn.Sequential(nn.Linear(16, 8), nn.Dropout(0.5), nn.Linear(8, 4))
            case "frozen":
                linear[0].weight.requires_grad_(False)
        return linear

    def tensors(self) -> tuple[Tensor, Tensor]:
        inputs, labels = super().tensors()
        return (inputs.view(-1, 1, 4, 4) if self.options.get("model") == "image" else inputs), labels

    def optimizer(self, model: nn.Module) -> Optimizer:
        if self.options.get("optimizer") == "adam":
            return Adam(model.parameters(), lr=0.01)
        decay = float(self.options.get("decay", 0.0))
        return SGD(model.parameters(), lr=0.1, momentum=0.9 if decay else 0.0, weight_decay=decay)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if self.options.get("loss") == "squares":
            return (outputs - nn.functional.one_hot(targets, 4)).square().mean()
        return super().loss(outputs, targets)


def _trainers(options: dict[str, Any], **sections: Any) -> tuple[Trainer, Trainer]:
    """What is chosen, and the loop."""
    values: dict[str, Any] = {
        "population": {"clients": 20},
        "client": {"batch_size": 8, "epochs": 2},
        "task": {"entry": f"{_HERE}Wide", "options": options},
    } | sections
    settings = make_experiment(values).arms[0].settings
    task = load_task(settings.task, settings.client)
    tensors = task.tensors()
    assert tensors is not None
    data = SplitData(tensors, settings.data, settings.client, settings.population.clients, 7)
    return make_trainer(task, settings, data), LoopTrainer(task, settings, data, "loop")


@pytest.mark.parametrize(
    ("options", "how"),
    [
        ({}, "many at once, by stacked matrices"),
        ({"decay": 0.01}, "many at once, by stacked matrices"),
        ({"model": "convolution"}, "many at once, by vmap"),
        ({"model": "image"}, "many at once, by stacked matrices"),
        ({"loss": "squares"}, "many at once, by vmap"),
    ],
)
@pytest.mark.parametrize("steps", [None, 5])
def test_together_comes_out_what_comes_out_one_by_one(options: dict[str, Any], how: str, steps: int | None) -> None:
    chosen, loop = _trainers(options, client={"batch_size": 8, "epochs": 2, "local_steps": steps})
    assert chosen.how == how
    _, weights = chosen.begin()
    generator = torch.Generator().manual_seed(3)
    bases = [weights + 0.1 * torch.randn(weights.shape, generator=generator) for _ in range(2)]
    clients = [(client, number) for client in (3, 0, 17, 8) for number in (0, 4)]
    together, alone = ([Job(client, number, 0, bases[number > 0]) for client, number in clients] for _ in range(2))
    chosen.train(together)
    loop.train(alone)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(other.delta, Tensor)
        assert one.delta is not None
        assert not isinstance(one.delta, Tensor)
        assert (one.num_examples, one.metrics["local_steps"]) == (other.num_examples, other.metrics["local_steps"])
        assert one.delta.norm() == l2_norm(torch.cat(list(one.delta.slices())))
        torch.testing.assert_close(torch.cat(list(one.delta.slices())), other.delta, rtol=2e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "client", "why"),
    [
        ({"model": "norm"}, {}, "the model has buffers"),
        ({"model": "dropout"}, {}, "torch cannot map this model"),
        ({"model": "frozen"}, {}, "not all parameters are float32 and trained"),
        ({"optimizer": "adam"}, {}, "the optimizer is a Adam"),
        ({}, {"proximal_mu": 0.1}, "hooks act on single models"),
        ({}, {"local_steps": "auto"}, "client.local_steps auto follows each client"),
    ],
)
def test_what_cannot_be_batched_is_done_in_a_loop_and_said(
    options: dict[str, Any], client: dict[str, Any], why: str
) -> None:
    assert why in _trainers(options, client=client)[0].how
    with pytest.raises(ConfigError, match=r"simulation\.training: batched is not possible here"):
        _trainers(options, client=client, simulation={"training": "batched"})


def test_a_client_sees_each_of_its_examples_once_a_pass_in_an_order_of_its_own() -> None:
    task = BlobsTask(TaskSettings(), ClientSettings())
    _, labels = task.tensors()
    numbered = torch.arange(len(labels)).unsqueeze(1)
    settings = make_experiment({"population": {"clients": 30}}).arms[0].settings
    for client in (ClientSettings(batch_size=7, epochs=2), ClientSettings(batch_size=7, local_steps=3)):
        data = SplitData((numbered, labels), settings.data, client, 30, 1)
        assert data.counts.sum() == len(labels)
        for number in (0, 1, 5):
            batches = [batch for one in data.passes(4, number) for batch in one]
            assert sum(len(targets) for _, targets in batches) == data.seen(4, number)
    data = SplitData((numbered, labels), settings.data, ClientSettings(batch_size=7, epochs=2), 30, 1)
    first, second = (torch.cat([seen for seen, _ in one]).flatten().tolist() for one in data.passes(4, 0))
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(set(first)) == len(first) == data.counts[4]


@pytest.mark.parametrize("split", ["dirichlet", "even", "drawn"])
def test_splits_are_as_skewed_as_they_say(split: str) -> None:
    labels = BlobsTask(TaskSettings(), ClientSettings()).tensors()[1]
    spread = {}
    for alpha in (0.05, 50.0):
        settings = make_experiment({"data": {"split": split, "alpha": alpha}}).arms[0].settings
        data = SplitData((labels.unsqueeze(1), labels), settings.data, ClientSettings(), 20, 3)
        spread[alpha] = sum(float(data.mix(client).max()) for client in range(20)) / 20
    if split == "even":
        assert spread[0.05] == spread[50.0] < 0.5
    else:
        assert spread[50.0] < 0.5
        assert spread[0.05] > 0.7


def test_sizes_are_as_skewed_as_they_say() -> None:
    labels = BlobsTask(TaskSettings(), ClientSettings()).tensors()[1]
    for split in ("even", "drawn"):
        alike, skewed = (
            SplitData(
                (labels.unsqueeze(1), labels),
                make_experiment({"data": {"split": split, "size_sigma": sigma}}).arms[0].settings.data,
                ClientSettings(),
                20,
                3,
            ).counts
            for sigma in (0.0, 1.5)
        )
        assert alike.max() - alike.min() <= 1
        assert skewed.min() >= 1
        assert skewed.max() > 3 * alike.max() / 2

"""Two tasks without a data file: `blobs`, which is quickly learnt, and `noop:N`, which only moves N weights about.

`noop` is for measuring everything but the training: it costs no forward or backward pass.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training.batches import Batch
from llmos_stream.training.models import mlp
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.task import Task
from llmos_stream.training.tensor_task import TensorTask

_CLASSES, _FEATURES = 4, 16
_TRAIN_EXAMPLES, _TEST_EXAMPLES = 1024, 256

_NOOP_TENSORS = 10
_NOOP_STEP = 1e-3
_NOISE_CHUNK = 1 << 20


class BlobsTask(TensorTask):
    """Four Gaussian blobs of unit variance in 16 dimensions, their centres 6 sqrt(2) apart: separable."""

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        generator = torch.Generator("cpu").manual_seed(derive_seed(task.seed, "data"))
        centres = 6 * torch.eye(_FEATURES, dtype=torch.float32, device="cpu")[:_CLASSES]
        labels = torch.arange(_TRAIN_EXAMPLES + _TEST_EXAMPLES, device="cpu") % _CLASSES
        points = centres[labels] + torch.randn(
            len(labels), _FEATURES, generator=generator, dtype=torch.float32, device="cpu"
        )
        train, test = slice(_TRAIN_EXAMPLES), slice(_TRAIN_EXAMPLES, None)
        super().__init__("blobs", (points[train], labels[train]), (points[test], labels[test]), task, client)

    def model(self) -> nn.Module:
        return mlp(_FEATURES, 32, _CLASSES, seed=derive_seed(self.settings.seed, "model"))


class NoopTask(Task):
    """N float32 parameters in ten tensors, to each of which a step adds Gaussian noise of scale 1e-3.

    The noise of a client depends on `task.seed` and `client.shard`. Each shard is one batch of one example.
    """

    def __init__(self, argument: str, task: TaskSettings, client: ClientSettings) -> None:
        if not argument.isdecimal() or int(argument) < _NOOP_TENSORS:
            raise TaskError(f"write noop:N with N parameters, at least {_NOOP_TENSORS}; got {argument!r}")
        super().__init__(task, client)
        self.name = "noop"
        self._numel = int(argument)

    def model(self) -> nn.Module:
        return _Noop(self._numel, derive_seed(self.settings.seed, "model"))

    def optimizer(self, model: nn.Module) -> Optimizer:
        return _Noise(model, derive_seed(self.settings.seed, "noise", self.client.shard))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def train_batches(self, shard: int = 0) -> list[Batch]:
        return [(torch.zeros(1, 2, dtype=torch.float32, device="cpu"), torch.zeros(1, dtype=torch.long, device="cpu"))]

    def test_batches(self, batch_size: int) -> list[Batch]:
        return self.train_batches(0)

    def num_train_examples(self, shard: int = 0) -> int:
        return 1


class _Noop(nn.Module):
    def __init__(self, numel: int, seed: int) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        size = numel // _NOOP_TENSORS
        sizes = [size] * (_NOOP_TENSORS - 1) + [numel - size * (_NOOP_TENSORS - 1)]
        weights = (
            torch.empty(size, dtype=torch.float32, device="cpu").normal_(std=0.02, generator=generator)
            for size in sizes
        )
        self.weights = nn.ParameterList(nn.Parameter(weight) for weight in weights)

    def forward(self, inputs: Tensor) -> Tensor:
        # A leaf of its own gives backward() something to do that costs nothing, whatever the number of weights.
        return inputs.clone().requires_grad_()


class _Noise(Optimizer):
    def __init__(self, model: nn.Module, seed: int) -> None:
        super().__init__(model.parameters(), {})
        self._generator = torch.Generator("cpu").manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                # In pieces, so that a model that fills the memory can still be stepped.
                for piece in parameter.view(-1).split(_NOISE_CHUNK):
                    piece.add_(torch.empty_like(piece).normal_(std=_NOOP_STEP, generator=self._generator))

"""A task whose data are tensors in memory: split by labels, reshuffled each epoch, trained with SGD."""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.training.partition import dirichlet_split, split_alike
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.task import Task

# The same for every client whatever its batch size: clients that split differently would share examples.
_MIN_PER_SHARD = 32


class Batches:
    """Batches of (inputs, targets), in stored order or, given a seed, in a new order each time it is iterated.

    The order of the n-th pass depends on the seed and n alone. The last batch may be smaller.
    """

    def __init__(self, inputs: Tensor, targets: Tensor, batch_size: int, shuffle_seed: int | None = None) -> None:
        self._inputs = inputs
        self._targets = targets
        self._starts = range(0, len(targets), batch_size)
        self._shuffle_seed = shuffle_seed
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        inputs, targets = self._inputs, self._targets
        if self._shuffle_seed is not None:
            generator = torch.Generator("cpu").manual_seed(derive_seed(self._shuffle_seed, "epoch", self._epoch))
            self._epoch += 1
            order = torch.randperm(len(targets), generator=generator, device="cpu")
            inputs, targets = inputs[order], targets[order]
        for start in self._starts:
            chosen = slice(start, start + self._starts.step)
            yield inputs[chosen], targets[chosen]


class TensorTask(Task):
    """Classification of examples in memory; a subclass hands in its name and tensors, and makes the model.

    `train` and `test` are pairs of inputs (N, ...) and integer labels (N). The training examples are split
    with label skew over `task.shards`, the same way in every process that has the same task settings; and so are the
    test examples, for the clients to measure versions on.

    Raises:
        TaskError: There are more shards than training examples.
    """

    def __init__(
        self,
        name: str,
        train: tuple[Tensor, Tensor],
        test: tuple[Tensor, Tensor],
        task: TaskSettings,
        client: ClientSettings,
    ) -> None:
        super().__init__(task, client)
        self.name = name
        self._inputs, self._labels = train
        self._test = test
        least = max(1, min(_MIN_PER_SHARD, len(self._labels) // task.shards))
        seed = derive_seed(task.seed, "split")
        split = dirichlet_split(self._labels.numpy(), task.shards, task.alpha, seed, min_per_shard=least)
        self._shards = [torch.from_numpy(indices) for indices in split]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return cross_entropy(outputs, targets)

    def train_batches(self, shard: int = 0) -> Batches:
        chosen = self._shard(shard)
        seed = derive_seed(self.settings.seed, "batches", shard)
        return Batches(self._inputs[chosen], self._labels[chosen], self.client.batch_size, seed)

    def tensors(self) -> tuple[Tensor, Tensor]:
        return self._inputs, self._labels

    def test_batches(self, batch_size: int) -> Batches:
        return Batches(*self._test, batch_size)

    def validation_batches(self) -> Batches | None:
        """Those of the test examples that are as this shard's own: split by the same shares of each class.

        They are no part of any shard. None: so few are there that it gets none.
        """
        self._shard(self.client.shard)
        parts = [shard.numpy() for shard in self._shards]
        seed = derive_seed(self.settings.seed, "validation")
        inputs, labels = self._test
        split = split_alike(self._labels.numpy(), parts, labels.numpy(), seed)
        chosen = torch.from_numpy(split[self.client.shard])
        return Batches(inputs[chosen], labels[chosen], self.client.batch_size) if len(chosen) else None

    def num_train_examples(self, shard: int = 0) -> int:
        return len(self._shard(shard))

    def _shard(self, shard: int) -> Tensor:
        if not 0 <= shard < len(self._shards):
            raise TaskError(f"{self.name} has shards 0 to {len(self._shards) - 1}, not {shard}")
        return self._shards[shard]

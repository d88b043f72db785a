"""A task of sites that hold rows of their own: what the scenarios' tasks share.

`client.data` names the site. Each site splits its rows by `task.seed` into those that it trains on, those that it
measures versions on, and those that nobody sees before the end.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from llmos_stream.errors import TaskError
from llmos_stream.training import Task
from llmos_stream.training.seeds import derive_seed
from llmos_stream.training.tensor_task import Batches


class Examples(NamedTuple):
    """Inputs (N, ...) and targets (N)."""

    inputs: Tensor
    targets: Tensor


class Split(NamedTuple):
    """What a site holds."""

    train: Examples
    validation: Examples
    test: Examples


class SiteTask(Task):
    """A subclass says which sites there are, what each holds, and makes the model."""

    sites: ClassVar[Sequence[str]]

    @abstractmethod
    def split(self, site: str) -> Split:
        """What a site holds, made from its own rows alone."""

    def train_batches(self, shard: int = 0) -> Batches:
        seed = derive_seed(self.settings.seed, f"batches of {self._site}")
        return Batches(*self.split(self._site).train, self.client.batch_size, seed)

    def validation_batches(self) -> Batches | None:
        held = self.split(self._site).validation
        return Batches(*held, self.client.batch_size) if len(held.targets) else None

    def test_batches(self, batch_size: int) -> Batches:
        """The test rows of all sites: what an evaluator has whom each of them gave its own."""
        return Batches(*joined([self.split(site).test for site in self.sites]), batch_size)

    def tensors(self) -> tuple[Tensor, Tensor]:
        return joined([self.split(site).train for site in self.sites])

    def num_train_examples(self, shard: int = 0) -> int:
        return len(self.split(self._site).train.targets)

    @property
    def _site(self) -> str:
        if self.data not in self.sites:
            raise TaskError(f"client.data: {self.name} has no site {self.data!r}, but {', '.join(self.sites)}")
        return self.data


def joined(parts: Sequence[Examples]) -> Examples:
    """The examples of several sites, one site after the other."""
    return Examples(torch.cat([part.inputs for part in parts]), torch.cat([part.targets for part in parts]))


def drawn(
    labels: NDArray[np.int64], validation: float, test: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Indices to train on, to validate and to test on: so much of each class of `labels`, by chance, in order."""
    generator = np.random.default_rng(seed)
    parts: tuple[list[int], list[int], list[int]] = ([], [], [])
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        for_test, held = round(test * len(members)), round((test + validation) * len(members))
        for part, some in zip(parts, (members[held:], members[for_test:held], members[:for_test]), strict=True):
            part.extend(some.tolist())
    kept, validated, tested = (np.sort(np.asarray(part, np.int64)) for part in parts)
    return kept, validated, tested


def examples(inputs: NDArray[np.float64], targets: NDArray[np.int64]) -> Examples:
    """As tensors."""
    return Examples(torch.from_numpy(inputs.astype(np.float32)), torch.from_numpy(targets.astype(np.int64)))

"""What the federation learns: what a line of text is about. Each site has a file of its own.

Each line is a class, a tab and the text. Words are told by a hash, so that no site has to know the words of another.
"""

import re
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream import Task
from llmos_stream.errors import TaskError

HELD_BACK = 5  # every fifth line is for validation


class Words(nn.Module):
    """The mean of the words' vectors, and a linear layer on it: (N, length) whole numbers to logits (N, classes)."""

    def __init__(self, buckets: int, width: int, classes: int) -> None:
        super().__init__()
        self.vectors = nn.EmbeddingBag(buckets, width, padding_idx=0)
        self.head = nn.Linear(width, classes)

    def forward(self, words: Tensor) -> Tensor:
        return self.head(self.vectors(words))


class Project(Task):
    """A classifier over a bag of words."""

    def model(self) -> nn.Module:
        return Words(self.options["buckets"], self.options["width"], len(self.options["classes"]))

    def train_batches(self, shard: int = 0) -> DataLoader:
        words, targets = self._read(self.data)
        kept = torch.arange(len(targets)) % HELD_BACK != 0
        return DataLoader(TensorDataset(words[kept], targets[kept]), self.client.batch_size, shuffle=True)

    def validation_batches(self) -> DataLoader:
        words, targets = self._read(self.data)
        kept = torch.arange(len(targets)) % HELD_BACK == 0
        return DataLoader(TensorDataset(words[kept], targets[kept]), self.client.batch_size)

    def test_batches(self, batch_size: int) -> DataLoader | None:
        """The evaluator's own file, where there is one. No other role reads it."""
        test = self.options.get("test")
        return None if test is None else DataLoader(TensorDataset(*self._read(test)), batch_size)

    def example(self) -> Tensor:
        return torch.zeros(self.options["length"], dtype=torch.int64)

    def words(self, text: str) -> list[int]:
        """The numbers of a text's first words, filled up with 0: what the model takes, and `serve` is asked with."""
        length, buckets = self.options["length"], self.options["buckets"]
        found = [1 + zlib.crc32(word.encode()) % (buckets - 1) for word in re.findall(r"\w+", text.lower())]
        return (found + [0] * length)[:length]

    def _read(self, path: str) -> tuple[Tensor, Tensor]:
        classes, words, targets = self.options["classes"], [], []
        with Path(path).open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                about, tab, text = line.partition("\t")
                if not tab or about not in classes:
                    raise TaskError(f"{path}, line {number}: it is not one of {', '.join(classes)}, a tab and a text")
                words.append(self.words(text))
                targets.append(classes.index(about))
        if not targets:
            raise TaskError(f"{path}: there is no line in it")
        return torch.tensor(words), torch.tensor(targets)

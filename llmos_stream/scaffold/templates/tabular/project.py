"""What the federation learns: to tell the classes of a table's rows. Each site has a CSV file of its own.

`[task.options]` in llmos.toml names the columns, in the words of the file's first line.
"""

import csv
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream import Task
from llmos_stream.errors import TaskError

HELD_BACK = 5  # every fifth row is for validation


class Scaled(nn.Module):
    """Brings every column to about -1 to 1, at all sites alike: or each would train another model."""

    def __init__(self, columns: Iterable[tuple[float, float]]) -> None:
        super().__init__()
        usual, spread = torch.tensor([*columns], dtype=torch.float32).T
        self.register_buffer("usual", usual, persistent=False)
        self.register_buffer("spread", spread, persistent=False)

    def forward(self, inputs: Tensor) -> Tensor:
        return (inputs - self.usual) / self.spread


class Project(Task):
    """A small network over columns of numbers."""

    def model(self) -> nn.Module:
        columns, classes = self.options["features"], self.options["classes"]
        return nn.Sequential(
            Scaled(columns.values()),
            nn.Linear(len(columns), 32),
            nn.ReLU(),
            nn.Linear(32, len(classes)),
        )

    def train_batches(self, shard: int = 0) -> DataLoader:
        inputs, targets = self._read(self.data)
        kept = torch.arange(len(targets)) % HELD_BACK != 0
        rows = TensorDataset(inputs[kept], targets[kept])
        return DataLoader(rows, self.client.batch_size, shuffle=True)

    def validation_batches(self) -> DataLoader:
        inputs, targets = self._read(self.data)
        kept = torch.arange(len(targets)) % HELD_BACK == 0
        return DataLoader(TensorDataset(inputs[kept], targets[kept]), self.client.batch_size)

    def test_batches(self, batch_size: int) -> DataLoader | None:
        """The evaluator's own file, where there is one. No other role reads it."""
        test = self.options.get("test")
        return None if test is None else DataLoader(TensorDataset(*self._read(test)), batch_size)

    def metrics(self) -> dict:
        return {"confidence": lambda outputs, targets: outputs.softmax(1).amax(1).mean()}

    def example(self) -> Tensor:
        return torch.zeros(len(self.options["features"]))

    def _read(self, path: str) -> tuple[Tensor, Tensor]:
        columns, target, classes = self.options["features"], self.options["target"], self.options["classes"]
        inputs, targets = [], []
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [name for name in (*columns, target) if name not in (rows.fieldnames or ())]
            if missing:
                there = ", ".join(rows.fieldnames or ()) or "none"
                raise TaskError(f"{path}: there is no column {missing[0]}; its columns are {there}")
            for row in rows:
                try:
                    inputs.append([float(row[name]) for name in columns])
                    targets.append(classes.index(row[target]))
                except (TypeError, ValueError) as error:
                    raise TaskError(f"{path}, line {rows.line_num}: {error}") from None
        if not targets:
            raise TaskError(f"{path}: there is no row in it")
        return torch.tensor(inputs), torch.tensor(targets)

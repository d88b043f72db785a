"""What the federation learns: to tell images apart. Each site has an .npz file of its own.

It holds `images`, whole numbers from 0 to 255 of shape (N, height, width) or (N, height, width, channels), and `labels`
(N), each the number of a class.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from llmos_stream import Task
from llmos_stream.errors import TaskError

HELD_BACK = 5  # every fifth image is for validation


class Project(Task):
    """A small convolutional network. Group normalisation, unlike that of batches, needs nothing of other sites."""

    def model(self) -> nn.Module:
        channels, classes = self.options["channels"], self.options["classes"]
        return nn.Sequential(
            nn.Conv2d(channels, 16, 3, padding=1),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.GroupNorm(4, 32),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, len(classes)),
        )

    def train_batches(self, shard: int = 0) -> DataLoader:
        images, labels = self._read(self.data)
        kept = torch.arange(len(labels)) % HELD_BACK != 0
        return DataLoader(TensorDataset(images[kept], labels[kept]), self.client.batch_size, shuffle=True)

    def validation_batches(self) -> DataLoader:
        images, labels = self._read(self.data)
        kept = torch.arange(len(labels)) % HELD_BACK == 0
        return DataLoader(TensorDataset(images[kept], labels[kept]), self.client.batch_size)

    def test_batches(self, batch_size: int) -> DataLoader | None:
        """The evaluator's own file, where there is one. No other role reads it."""
        test = self.options.get("test")
        return None if test is None else DataLoader(TensorDataset(*self._read(test)), batch_size)

    def example(self) -> Tensor:
        return torch.zeros(self.options["channels"], self.options["height"], self.options["width"])

    def _read(self, path: str) -> tuple[Tensor, Tensor]:
        with np.load(path, allow_pickle=False) as file:
            missing = [name for name in ("images", "labels") if name not in file]
            if missing:
                raise TaskError(f"{path}: there is no array {missing[0]}; it has {', '.join(file) or 'none'}")
            pixels, labels = file["images"], torch.from_numpy(file["labels"].astype(np.int64))
        if pixels.ndim == 3:
            pixels = pixels[..., None]
        shape = (self.options["height"], self.options["width"], self.options["channels"])
        if pixels.shape[1:] != shape or len(pixels) != len(labels):
            raise TaskError(f"{path}: {len(labels)} labels and images of {pixels.shape}, not (N, {shape})")
        if not len(labels):
            raise TaskError(f"{path}: there is no image in it")
        if labels.min() < 0 or labels.max() >= len(self.options["classes"]):
            raise TaskError(f"{path}: labels must be from 0 to {len(self.options['classes']) - 1}")
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 128 - 1, labels

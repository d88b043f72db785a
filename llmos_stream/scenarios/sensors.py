"""`sensors`: is a reading an anomaly? Four wireless nodes, of which two never had one.

A node learns what is normal: its autoencoder is trained on stretches without an anomaly, and an example's score is how
badly it is reconstructed. No label has a part in training or in what is chosen; both anomalies are test rows.
"""

from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from llmos_stream.scenarios.scores import AveragePrecision, FoundAt, RocAuc
from llmos_stream.scenarios.site_task import SiteTask, Split, examples
from llmos_stream.scenarios.tables import read_table
from llmos_stream.training.metrics import Metric
from llmos_stream.training.seeds import derive_seed

SITES = ("indoor 1", "indoor 2", "outdoor 3", "outdoor 4")
_STRETCH = 50
_WINDOW = 8
_VALIDATION, _TEST = 0.15, 0.25
_TYPICAL = ((45.0, 6.0), (27.5, 2.5))
"""Humidity in per cent, temperature in degrees Celsius: what is usual there, and how much it varies."""


class Autoencoder(nn.Module):
    """Windows (N, 16) to how badly each is reconstructed: the mean squared error (N)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2 * _WINDOW, 12), nn.Tanh(), nn.Linear(12, 3))
        self.decoder = nn.Sequential(nn.Linear(3, 12), nn.Tanh(), nn.Linear(12, 2 * _WINDOW))

    def forward(self, windows: Tensor) -> Tensor:
        rebuilt: Tensor = self.decoder(self.encoder(windows))
        return (rebuilt - windows).square().mean(dim=1)


class Sensors(SiteTask):
    """Windows of 8 readings of humidity and temperature. A window is an anomaly where any of its readings is."""

    name = "sensors"
    sites = SITES

    def model(self) -> nn.Module:
        return Autoencoder()

    def optimizer(self, model: nn.Module) -> Optimizer:
        return Adam((one for one in model.parameters() if one.requires_grad), lr=self.client.lr)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def split(self, site: str) -> Split:
        return _split(site, self.settings.seed)

    def metrics(self) -> Mapping[str, Metric]:
        return {"auc": RocAuc(), "average_precision": AveragePrecision(), "found": FoundAt(0.01)}

    def example(self) -> Tensor:
        return torch.zeros(2 * _WINDOW)


@cache
def _split(site: str, seed: int) -> Split:
    """Whole stretches go to one part, so that no window of one has a reading of another's."""
    rows = [row for row in read_table("sensors") if row["mote_id"] == site[-1]]
    readings = np.array([[float(row["humidity"]), float(row["temperature"])] for row in rows])
    means, spreads = np.array(_TYPICAL).T
    readings = (readings - means) / spreads
    anomalies = np.array([row["label"] == "1" for row in rows], np.int64)
    stretches = [slice(start, start + _STRETCH) for start in range(0, len(rows) - _WINDOW, _STRETCH)]
    normal = [stretch for stretch in stretches if not anomalies[stretch].any()]
    order = np.random.default_rng(derive_seed(seed, f"split of {site}")).permutation(len(normal))
    tested, held = round(_TEST * len(order)), round((_TEST + _VALIDATION) * len(order))
    chosen = [order[held:], order[tested:held], order[:tested]]
    parts = [[normal[index] for index in sorted(some)] for some in chosen]
    parts[2] += [stretch for stretch in stretches if anomalies[stretch].any()]
    return Split(*(examples(*_windows(readings, anomalies, part)) for part in parts))


def _windows(
    readings: NDArray[np.float64], anomalies: NDArray[np.int64], stretches: list[slice]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    seen, labels = [], []
    for stretch in stretches:
        own, marked = readings[stretch], anomalies[stretch]
        for end in range(_WINDOW, len(own) + 1):
            seen.append(own[end - _WINDOW : end].ravel())
            labels.append(marked[end - _WINDOW : end].max())
    return np.array(seen), np.array(labels)

"""`sensors`: is a reading an anomaly? Four wireless nodes, none of which has had one so far; two will.

Somebody held a kettle of hot water to a node indoors and to one outdoors. A node learns from a short time of its own
readings how readings usually move; what is unlikely by that is an anomaly. No label has a part in training.
"""

import math
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from llmos_stream.config import ClientSettings, TaskSettings
from llmos_stream.errors import TaskError
from llmos_stream.scenarios.scores import AveragePrecision, FalseAlarms, MeanScore
from llmos_stream.scenarios.site_task import Examples, SiteTask, Split, examples
from llmos_stream.scenarios.tables import read_table
from llmos_stream.training.metrics import Metric
from llmos_stream.training.seeds import derive_seed

SITES = ("indoors 1", "indoors 2", "outdoors 3", "outdoors 4")
_READINGS_A_MINUTE = 12
_PAST = 2_200
"""So many readings of each node, three hours of them, are before the test; both anomalies are after that."""
_LEAST, _MOST = 5, 180
_WINDOW = 4
_UNITS = (0.1, 0.02)
"""Of humidity in per cent and of temperature in degrees Celsius: about what one reading differs from the next by."""
_FEATURES = (_WINDOW - 1) * len(_UNITS)


class Density(nn.Module):
    """A normal distribution of all changes in a window: of windows (N, 6) the negative log-likelihoods (N), in nats.

    That is -log p, where p has the mean `mean` and the precision U' S^2 U, U a triangle with a diagonal of ones and
    `turn` below it, S = exp(`scale`). So what nodes share may be averaged in any way and is a distribution still. At
    first `scale` and `turn` are 0, so that it is the sum of squares but for a constant.
    """

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(_FEATURES, dtype=torch.float32, device="cpu"))
        self.scale = nn.Parameter(torch.zeros(_FEATURES, dtype=torch.float32, device="cpu"))
        self.turn = nn.Parameter(torch.zeros(_FEATURES, _FEATURES, dtype=torch.float32, device="cpu"))

    def forward(self, windows: Tensor) -> Tensor:
        moved = windows - self.mean
        apart = (moved + moved @ self.turn.tril(-1).T) * self.scale.exp()
        return 0.5 * apart.square().sum(dim=1) - self.scale.sum() + 0.5 * _FEATURES * math.log(2 * math.pi)


class Sensors(SiteTask):
    """Windows of 4 readings, as the changes from each to the next: what is usual does not depend on the place.

    A window is an anomaly where its newest reading is. With the option `minutes` a node has watched for so long (30)
    when it learns: a time within the three hours before the test, drawn by the seed.
    """

    name = "sensors"
    sites = SITES

    def __init__(self, task: TaskSettings, client: ClientSettings) -> None:
        super().__init__(task, client)
        minutes = self.options.get("minutes", 30)
        if not isinstance(minutes, int) or not _LEAST <= minutes <= _MOST or self.options.keys() - {"minutes"}:
            raise TaskError(f"task.options: minutes={_LEAST} to minutes={_MOST}")
        self._minutes = minutes

    def model(self) -> nn.Module:
        return Density()

    def optimizer(self, model: nn.Module) -> Optimizer:
        return Adam((one for one in model.parameters() if one.requires_grad), lr=self.client.lr)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return outputs.mean()

    def split(self, site: str) -> Split:
        return _split(site, self.settings.seed, self._minutes)

    def metrics(self) -> Mapping[str, Metric]:
        hour = 60 * _READINGS_A_MINUTE
        return {
            "average_precision": AveragePrecision(),
            "false_alarms": FalseAlarms(recall=0.95, readings=hour),
            "nll": MeanScore(),
        }

    def example(self) -> Tensor:
        return torch.zeros(_FEATURES, dtype=torch.float32, device="cpu")


@cache
def _split(site: str, seed: int, minutes: int) -> Split:
    """Three quarters of what the node has watched to train on, the rest to validate on; later, the test."""
    rows = [row for row in read_table("sensors") if row["mote_id"] == site[-1]]
    readings = np.array([[float(row["humidity"]), float(row["temperature"])] for row in rows])
    anomalies = np.array([row["label"] == "1" for row in rows], np.int64)
    watched = minutes * _READINGS_A_MINUTE
    start = int(np.random.default_rng(derive_seed(seed, f"split of {site}")).integers(_PAST - watched + 1))
    known = start + watched * 3 // 4
    parts = (slice(start, known), slice(known, start + watched), slice(_PAST, None))
    return Split(*(_windows(readings[part], anomalies[part]) for part in parts))


def _windows(readings: NDArray[np.float64], anomalies: NDArray[np.int64]) -> Examples:
    """All windows of these readings, none of which has a reading from elsewhere."""
    changes = np.diff(readings, axis=0) / np.array(_UNITS)
    seen = np.lib.stride_tricks.sliding_window_view(changes, _WINDOW - 1, axis=0)
    return examples(seen.transpose(0, 2, 1).reshape(len(seen), _FEATURES), anomalies[_WINDOW - 1 :])

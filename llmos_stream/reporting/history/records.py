"""What a History consists of: points for charts, rejected updates, the end of the run, a client's row."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from llmos_stream.reporting.history.clients import ClientStats, ClientStatus


class UpdatePoint(NamedTuple):
    """A folded update. Its client may have lost its row since."""

    time_ms: int
    client_id: str
    sequence: int
    staleness: int | None
    version: int | None


class VersionPoint(NamedTuple):
    """A published version."""

    version: int
    time_ms: int
    lag: int | None = None
    """Records that the aggregator had not read yet."""
    pace_seconds: float | None = None
    """Time between two updates of a client that the aggregator asked for."""


class EvaluationPoint(NamedTuple):
    """An evaluated version. `metrics` holds accuracy and loss, `others` what else the task measures, if finite."""

    version: int
    time_ms: int
    metrics: Mapping[str, float]
    others: Mapping[str, float] = MappingProxyType({})

    @property
    def all_metrics(self) -> dict[str, float]:
        """Accuracy and loss first."""
        return {**self.metrics, **self.others}


class BytesPoint(NamedTuple):
    """Cumulative bytes: uploaded, the same as float32, and broadcast."""

    time_ms: int
    sent: int
    raw: int
    broadcast: int


class RejectedUpdate(NamedTuple):
    """An update that was rejected; what its message said may be false."""

    time_ms: int
    client_id: str | None
    sequence: int | None
    reason: str
    detail: str
    partition: int | None
    offset: int | None


class CollapsePoint(NamedTuple):
    """A version whose loss showed that the model had collapsed, and what was done."""

    version: int
    loss: float | None
    """None where it was not finite."""
    limit: float | None
    best_version: int | None
    best_loss: float | None
    action: str


class Finish(NamedTuple):
    """The end of the run."""

    time_ms: int
    reason: str
    detail: str
    version: int | None


class ClientRow(NamedTuple):
    """One client in a table, as of some moment."""

    client: ClientStats
    silent_seconds: float | None
    """None where no event says."""
    share: float
    """Share of all contribution weight, 0 to 1."""
    state: ClientStatus

"""The records a History hands out: points for charts, refusals, the end of the run, a client's row."""

from collections.abc import Mapping
from typing import NamedTuple

from llmos_stream.reporting.clients import ClientState


class UpdatePoint(NamedTuple):
    """An update folded. `client_id` may since have lost its row."""

    time_ms: int
    client_id: str
    sequence: int
    staleness: int | None
    version: int | None


class VersionPoint(NamedTuple):
    version: int
    time_ms: int
    contributions: int | None
    mean_staleness: float | None
    payload_bytes: int
    lag: int | None = None
    """Records that the aggregator had still to read."""
    pace_seconds: float | None = None
    """How long it asked clients to leave between updates."""


class Evaluation(NamedTuple):
    """`metrics` holds accuracy and loss, as far as they were finite."""

    version: int
    time_ms: int
    metrics: Mapping[str, float]


class BytesPoint(NamedTuple):
    """Cumulative bytes at a time: uploaded, what float32 would have taken, and broadcast."""

    time_ms: int
    sent: int
    raw: int
    broadcast: int


class Refusal(NamedTuple):
    """An update that was rejected; what the refused message claimed of itself may be false."""

    time_ms: int
    client_id: str | None
    sequence: int | None
    reason: str
    detail: str
    partition: int | None
    offset: int | None


class Finish(NamedTuple):
    time_ms: int
    reason: str
    detail: str
    version: int | None


class ClientRow(NamedTuple):
    """One client as people look at it; None where no event told."""

    client_id: str
    num_examples: int | None
    sent: int
    folded: int
    duplicates: int
    rejected: int
    mean_staleness: float | None
    last_staleness: int | None
    train_seconds: float | None
    silent_seconds: float | None
    share: float
    """Share of all contribution weight, 0 to 1."""
    bytes_sent: int
    state: ClientState

"""What a phase's samples amount to, as rows for people and for machines."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

from tests.bench.common import show
from tests.bench.pipe_cells import Cell, millions
from tests.bench.pipe_federation import Memory, Sample


class Row(TypedDict):
    """One phase of one cell. A MB is 10^6 bytes.

    Speeds are those of the best round; CPU times and latencies are of all rounds. `updates_mb_s` counts updates as they
    lie on the wire, `float32_mb_s` as if they were float32, `log_mb_s` updates and versions. `ratio` is the speed
    over plain aiokafka's with messages of the same size. Latency runs from the call that publishes an update until
    a reader sees its version. CPU seconds are for one update; `aggregator_loop_cpu_s` is the share of the thread
    that reads from Kafka and writes to it; `fetch_*` is what one version costs one client, from when it is written to
    the log until it is decoded. Peaks are of all phases of the cell, the largest client's, above what the same process
    has resident with a model of 1,000 parameters; `aggregator_peak_models` is over the model's float32 size.
    """

    numel: int
    codec: str
    clients: int
    phase: str
    updates: int
    updates_per_s: float
    update_mb: float
    updates_mb_s: float
    reference_mb_s: float
    ratio: float
    float32_mb_s: float
    float32_reference_mb_s: float
    float32_ratio: float
    log_mb_s: float
    latency_p50_s: float
    latency_p99_s: float
    client_cpu_s: float
    aggregator_cpu_s: float
    aggregator_loop_cpu_s: float
    broker_cpu_s: float | None
    version_mb: float
    fetch_p50_s: float | None
    fetch_cpu_s: float | None
    aggregator_peak_mib: float
    aggregator_peak_models: float
    client_peak_mib: float


@dataclass(frozen=True, slots=True)
class Reference:
    """MB/s of plain aiokafka with as many producers: messages of an update's size, and of the model's as float32."""

    update: float
    float32: float


def row_of(cell: Cell, phase: str, samples: Sequence[Sample], reference: Reference, peak: Memory, idle: Memory) -> Row:
    best = max(samples, key=lambda sample: sample.updates / sample.seconds)
    updates = sum(sample.updates for sample in samples)
    rate = best.updates / best.seconds
    wire = best.update_bytes / 1e6 / best.seconds
    float32 = rate * cell.model_bytes / 1e6
    latencies = [seconds for sample in samples for seconds in sample.latencies]
    fetches = [fetch for sample in samples for fetch in sample.fetches]
    broker = [sample.broker_cpu_seconds for sample in samples if sample.broker_cpu_seconds is not None]
    return Row(
        numel=cell.numel,
        codec=str(cell.codec),
        clients=cell.clients,
        phase=phase,
        updates=updates,
        updates_per_s=rate,
        update_mb=best.update_bytes / best.updates / 1e6,
        updates_mb_s=wire,
        reference_mb_s=reference.update,
        ratio=wire / reference.update,
        float32_mb_s=float32,
        float32_reference_mb_s=reference.float32,
        float32_ratio=float32 / reference.float32,
        log_mb_s=(best.update_bytes + best.version_bytes) / 1e6 / best.seconds,
        latency_p50_s=median(latencies),
        latency_p99_s=percentile(latencies, 0.99),
        client_cpu_s=sum(sample.client_cpu_seconds for sample in samples) / updates,
        aggregator_cpu_s=sum(sample.aggregator_cpu_seconds for sample in samples) / updates,
        aggregator_loop_cpu_s=sum(sample.aggregator_loop_cpu_seconds for sample in samples) / updates,
        broker_cpu_s=sum(broker) / updates if broker else None,
        version_mb=best.version_bytes / best.versions / 1e6,
        fetch_p50_s=median(fetch.seconds for fetch in fetches) if fetches else None,
        fetch_cpu_s=sum(fetch.cpu_seconds for fetch in fetches) / len(fetches) if fetches else None,
        aggregator_peak_mib=peak.aggregator_mib - idle.aggregator_mib,
        aggregator_peak_models=(peak.aggregator_mib - idle.aggregator_mib) * (1 << 20) / cell.model_bytes,
        client_peak_mib=peak.client_mib - idle.client_mib,
    )


def percentile(values: Sequence[float], fraction: float) -> float:
    """By nearest rank: the smallest value that at least `fraction` of them do not exceed."""
    return sorted(values)[max(0, math.ceil(fraction * len(values)) - 1)]


def show_rows(rows: Sequence[Row]) -> None:
    """Print what the rows hold as two tables."""
    show(
        "Throughput, and what share of plain aiokafka's speed that is",
        ["", "updates", "updates/s", "MB", "MB/s", "plain MB/s", "ratio", "float32 MB/s", "plain MB/s", "ratio"],
        [
            [
                _name(row),
                f"{row['updates']}",
                f"{row['updates_per_s']:.2f}",
                f"{row['update_mb']:.2f}",
                f"{row['updates_mb_s']:.1f}",
                f"{row['reference_mb_s']:.0f}",
                f"{row['ratio']:.2f}",
                f"{row['float32_mb_s']:.0f}",
                f"{row['float32_reference_mb_s']:.0f}",
                f"{row['float32_ratio']:.2f}",
            ]
            for row in rows
        ],
        "MB: of updates, as they are sent, then as float32; plain: aiokafka alone with as many producers and bytes",
    )
    show(
        "CPU seconds for one update, peak memory, seconds of latency, MB of a version",
        ["", "client", "aggr.", "its loop", "Kafka", "aggr. MiB", "x model", "client MiB", "p50", "p99", "version"],
        [
            [
                _name(row),
                f"{row['client_cpu_s']:.3f}",
                f"{row['aggregator_cpu_s']:.3f}",
                f"{row['aggregator_loop_cpu_s']:.3f}",
                _optional(row["broker_cpu_s"], 3),
                f"{row['aggregator_peak_mib']:.0f}",
                f"{row['aggregator_peak_models']:.1f}",
                f"{row['client_peak_mib']:.0f}",
                f"{row['latency_p50_s']:.2f}",
                f"{row['latency_p99_s']:.2f}",
                f"{row['version_mb']:.2f}",
            ]
            for row in rows
        ],
        "its loop: the thread that reads from Kafka and writes to it; memory: above the same process with 1,000 "
        "parameters;\nlatency: from the call that publishes an update until a reader sees its version",
    )


def _name(row: Row) -> str:
    return f"{millions(row['numel'])} {row['codec']}, {row['clients']}, {row['phase']}"


def _optional(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

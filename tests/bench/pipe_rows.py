"""What a phase's samples amount to, as rows for people and for machines."""

import math
from collections.abc import Sequence
from statistics import median

from tests.bench.common import show
from tests.bench.pipe_federation import Peaks, Sample


class Row(Peaks):
    """One codec in one phase. A MB is 10^6 bytes.

    Speeds are those of the best round; CPU times and latencies are of all rounds. `updates_mb_s` counts updates as they
    lie on the wire, `float32_mb_s` as if they were float32, `log_mb_s` updates and versions. `ratio` is the speed
    over plain aiokafka's with messages of the same size. Latency runs from the call that publishes an update until
    a reader sees its version. CPU seconds are for one update; `fetch_*` is what one version costs one client, from when
    it is written to the log until it is decoded.
    """

    codec: str
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
    broker_cpu_s: float | None
    version_mb: float
    fetch_p50_s: float | None
    fetch_cpu_s: float | None


def row_of(
    codec: str, phase: str, samples: Sequence[Sample], raw_bytes: int, reference: float, float32: float, peaks: Peaks
) -> Row:
    """`raw_bytes` is an update's as float32; `reference` and `float32` are plain aiokafka's MB/s for either size."""
    best = max(samples, key=lambda sample: sample.updates / sample.seconds)
    updates = sum(sample.updates for sample in samples)
    rate = best.updates / best.seconds
    wire = best.update_bytes / 1e6 / best.seconds
    latencies = [seconds for sample in samples for seconds in sample.latencies]
    fetches = [fetch for sample in samples for fetch in sample.fetches]
    broker = [sample.broker_cpu_seconds for sample in samples if sample.broker_cpu_seconds is not None]
    return Row(
        codec=codec,
        phase=phase,
        updates=updates,
        updates_per_s=rate,
        update_mb=best.update_bytes / best.updates / 1e6,
        updates_mb_s=wire,
        reference_mb_s=reference,
        ratio=wire / reference,
        float32_mb_s=rate * raw_bytes / 1e6,
        float32_reference_mb_s=float32,
        float32_ratio=rate * raw_bytes / 1e6 / float32,
        log_mb_s=(best.update_bytes + best.version_bytes) / 1e6 / best.seconds,
        latency_p50_s=median(latencies),
        latency_p99_s=percentile(latencies, 0.99),
        client_cpu_s=sum(sample.client_cpu_seconds for sample in samples) / updates,
        aggregator_cpu_s=sum(sample.aggregator_cpu_seconds for sample in samples) / updates,
        broker_cpu_s=sum(broker) / updates if broker else None,
        version_mb=best.version_bytes / best.versions / 1e6,
        fetch_p50_s=median(fetch.seconds for fetch in fetches) if fetches else None,
        fetch_cpu_s=sum(fetch.cpu_seconds for fetch in fetches) / len(fetches) if fetches else None,
        **peaks,
    )


def percentile(values: Sequence[float], fraction: float) -> float:
    """By nearest rank: the smallest value that at least `fraction` of them do not exceed."""
    return sorted(values)[math.ceil(fraction * len(values)) - 1]


def show_rows(rows: Sequence[Row], numel: int, clients: int, rounds: int) -> None:
    """Print what the rows hold as two tables."""
    show(
        f"Throughput: {numel:,} float32 parameters, {clients} clients, best of {rounds}",
        ["", "updates/s", "MB", "MB/s", "plain MB/s", "ratio", "float32 MB/s", "plain MB/s", "ratio"],
        [
            [
                f"{row['codec']}, {row['phase']}",
                f"{row['updates_per_s']:.2f}",
                f"{row['update_mb']:.2f}",
                f"{row['updates_mb_s']:.1f}",
                f"{row['reference_mb_s']:.1f}",
                f"{row['ratio']:.2f}",
                f"{row['float32_mb_s']:.1f}",
                f"{row['float32_reference_mb_s']:.1f}",
                f"{row['float32_ratio']:.2f}",
            ]
            for row in rows
        ],
        "MB: of updates, as they are sent, then as float32; plain: aiokafka alone with as many bytes",
    )
    show(
        "Latency, CPU seconds for one update, peak memory, and what a version costs a client that fetches it",
        ["", "p50 s", "p99 s", "client", "aggr.", "Kafka", "aggr. MiB", "client MiB", "fetch s", "CPU s"],
        [
            [
                f"{row['codec']}, {row['phase']}",
                f"{row['latency_p50_s']:.2f}",
                f"{row['latency_p99_s']:.2f}",
                f"{row['client_cpu_s']:.3f}",
                f"{row['aggregator_cpu_s']:.3f}",
                _optional(row["broker_cpu_s"], 3),
                f"{row['aggregator_peak_mib']:.0f}",
                f"{row['client_peak_mib']:.0f}",
                _optional(row["fetch_p50_s"], 2),
                _optional(row["fetch_cpu_s"], 3),
            ]
            for row in rows
        ],
        "latency: from the call that publishes an update until a reader sees its version; memory: above the imports'",
    )


def _optional(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"

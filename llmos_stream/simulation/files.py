"""Results as tables: CSV, and Parquet where pandas and pyarrow are there."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from llmos_stream.simulation.experiment import Experiment
from llmos_stream.simulation.results import Result

Row = Mapping[str, object]
_PLAIN = (
    "arm",
    "seed",
    "updates",
    "folded",
    "versions",
    "seconds",
    "bytes_up",
    "bytes_down",
    "clients",
    "clients_seen",
)
_MORE = ("clients_never_folded", "final", "best", "digest", "ended", "training", "wall_seconds")


def write_tables(folder: Path, experiment: Experiment, results: Sequence[Result]) -> list[Path]:
    """Write `runs` (a row a run) and `points` (a row an evaluation), and return the files."""
    targets = {arm.name: arm.settings.simulation for arm in experiment.arms}
    runs: list[Row] = []
    for result in results:
        settings = targets[result.arm]
        met = None if settings.target is None else result.reached(settings.target, settings)
        reached = {} if met is None else {"seconds_to_target": met.seconds, "updates_to_target": met.updates}
        spent = {} if met is None else {"bytes_to_target": met.bytes_up + met.bytes_down}
        nested = {f"staleness_{name}": value for name, value in result.staleness.items()}
        nested |= {f"site_{name}": value for name, value in result.sites.items()}
        refused = {"refused": sum(result.refused.values())}
        runs.append({name: getattr(result, name) for name in (*_PLAIN, *_MORE)} | reached | spent | nested | refused)
    points: list[Row] = [
        {
            "arm": result.arm,
            "seed": result.seed,
            "seconds": point.seconds,
            "version": point.version,
            "updates": point.updates,
            "bytes_up": point.bytes_up,
            "bytes_down": point.bytes_down,
            **point.metrics,
        }
        for result in results
        for point in result.points
    ]
    return [path for name, rows in (("runs", runs), ("points", points)) for path in _write(folder, name, rows)]


def _write(folder: Path, name: str, rows: Sequence[Row]) -> list[Path]:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    path = folder / f"{name}.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    try:
        import pandas  # noqa: PLC0415  an extra
        import pyarrow  # noqa: F401, PLC0415  what pandas writes Parquet with
    except ImportError:
        return [path]
    parquet = folder / f"{name}.parquet"
    pandas.DataFrame(list(rows), columns=columns).to_parquet(parquet, index=False)
    return [path, parquet]

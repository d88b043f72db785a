"""What the benchmarks share: flags, best-of timing, a table and a JSON file."""

import argparse
import json
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

OUTPUT = Path("build") / "bench"
_SHOWN: list[dict[str, object]] = []
"""The tables that were shown since the last file was written."""
OWN_PREFIX = f"bench-{os.getpid()}-"
"""What the names of this process's federations and topics begin with."""


def fresh_name() -> str:
    """A federation's name, or a topic's, that no other benchmark has, in this process or beside it."""
    return f"{OWN_PREFIX}{uuid.uuid4().hex[:8]}"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags that every benchmark takes."""
    parser.add_argument(
        "--output", type=Path, default=OUTPUT, metavar="FOLDER", help=f"for the JSON (default {OUTPUT})"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads inside one torch operation (default 1)")


def best_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Shortest wall time of `repeats` calls, after one that warms up: the least disturbed by other processes."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table, and keep it for the JSON file; the first column is text, the others are numbers."""
    _SHOWN.append({"title": title, "columns": list(columns), "rows": [list(row) for row in rows], "caption": caption})
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 140)
    console.print(table)


def write_json(folder: Path, name: str, results: Mapping[str, object]) -> None:
    """Write `results`, the machine and the tables shown to `<folder>/<name>.json`, and say so.

    The documentation makes its tables of such files (`llmos_stream/docs/bench`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results, "tables": _SHOWN}, indent=2) + "\n")
    _SHOWN.clear()
    print(path)


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

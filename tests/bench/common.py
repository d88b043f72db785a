"""What the benchmarks share: best-of timing, peak memory, a table and a JSON file."""

import argparse
import ctypes
import gc
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

OUTPUT = Path("build") / "bench"
_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def arguments(description: str) -> argparse.ArgumentParser:
    """A parser with the flags that every benchmark takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", action="store_true", help=f"also write the numbers to {OUTPUT}/")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one torch operation (default 1)")
    return parser


def best_seconds(action: Callable[[], object], repeats: int = 5) -> float:
    """Shortest wall time of `repeats` calls, after one that warms up: the least disturbed by other processes."""
    action()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        action()
        times.append(time.perf_counter() - begin)
    return min(times)


def peak_mib(action: Callable[[], object]) -> float | None:
    """MiB by which `action` raises the resident memory at its peak; None where the system does not tell.

    That takes Linux and glibc, whose free memory must go back to the system first so that its reuse shows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not _CLEAR_REFS.exists():
        return None
    gc.collect()
    trim(0)
    _CLEAR_REFS.write_text("5")
    before = _status_kib("VmRSS")
    action()
    return max(0, _status_kib("VmHWM") - before) / 1024


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "cpu": _cpu(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
    }


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], caption: str = "") -> None:
    """Print a table; the first column is text, the others are numbers."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    console = Console()
    console.width = max(console.width, 110)
    console.print(table)


def write_json(name: str, results: Mapping[str, object]) -> Path:
    """Write `results` and the machine to `build/bench/<name>.json`."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    path = OUTPUT / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **results}, indent=2) + "\n")
    return path


def _status_kib(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field + ":"))
    return int(line.split()[1])


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()

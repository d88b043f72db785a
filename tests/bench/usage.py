"""Memory of this process and CPU time of those it has started."""

import ctypes
import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import psutil  # type: ignore[import-untyped]

_CLEAR_REFS = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


_LIMITS = [
    (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    (Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"), Path("/sys/fs/cgroup/memory/memory.usage_in_bytes")),
]
"""Where a container's limit and what is used of it are told, by cgroups 2 and 1."""


def available_bytes() -> int:
    """Memory that is free for more processes: of the machine, and within the limit of the container we may be in.

    Whoever takes more than a container's limit is killed, however much the machine has.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used in _LIMITS:
        if limit.is_file() and (text := limit.read_text().strip()).isdigit():
            free = min(free, max(0, int(text) - int(used.read_text())))
    return free


def resident_mib() -> float:
    """MiB that are resident now."""
    return float(psutil.Process().memory_info().rss) / (1 << 20)


def peak_mib() -> float:
    """The most MiB that were resident since the start, or since `forget_peak` where there is Linux."""
    if _STATUS.exists():  # there, getrusage starts with the peak of the process that forked this one
        line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def forget_peak() -> None:
    """Let the peak begin anew."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def peak_of(action: Callable[[], object]) -> float | None:
    """MiB by which `action` raises the resident memory at its peak; None where the system does not tell.

    That takes Linux and glibc, whose free memory must go back to the system first so that its reuse shows.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not _CLEAR_REFS.exists():
        return None
    gc.collect()
    trim(0)
    forget_peak()
    before = resident_mib()
    action()
    return max(0.0, peak_mib() - before)


def children_cpu_seconds(name: str) -> float:
    """CPU seconds, so far, of the running processes called `name` that this one or its children have started."""
    times = [child.cpu_times() for child in psutil.Process().children(recursive=True) if child.name() == name]
    return float(sum(time.user + time.system for time in times))

"""The programs of the Debian package `prometheus`: `promtool` checks, `prometheus` scrapes and answers."""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import IN_CI


def program(name: str) -> str:
    """Where it is; skips where it is not installed, fails where CI promises it."""
    if (found := shutil.which(name)) is None:
        reason = f"{name} is missing: apt-get install prometheus"
        if IN_CI:
            pytest.fail(f"CI must check what Prometheus reads: {reason}")
        pytest.skip(reason)
    return found


def promtool(*arguments: str | Path, text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run promtool; what it says is the caller's to judge."""
    command = [program("promtool"), *map(str, arguments)]
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=110, check=False)

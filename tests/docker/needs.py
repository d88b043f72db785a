"""What this machine must have to build the images and bring them up without a registry of images."""

import os
import shutil
from pathlib import Path

import pytest

from llmos_stream.broker import LocalKafka

PROMISED = bool(os.environ.get("LLMOS_TEST_CONTAINERS"))
"""Whether the environment asks for these tests: they take minutes, gigabytes of disk and root."""

_TOOLS = ("dockerd", "mmdebstrap", "prometheus", "promtool")
DOCKER = Path("/usr/bin/docker")
"""Debian's client, whose BuildKit is in the daemon. Newer ones on the path need a plugin for it."""


def require() -> None:
    """Skip where nobody asked for containers, fail where they were asked for and cannot be had."""
    if not PROMISED:
        pytest.skip("LLMOS_TEST_CONTAINERS is not set: .ci/run sets it, on Debian as root, and installs what is needed")
    if (reason := _missing()) is not None:
        pytest.fail(f"LLMOS_TEST_CONTAINERS is set, but {reason}; see .ci/run")


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "a Docker daemon of one's own needs root"
    if not Path("/etc/debian_version").is_file():
        return "the stand-ins for the images are made of Debian packages"
    absent = [tool for tool in _TOOLS if shutil.which(tool) is None]
    if not DOCKER.is_file():
        absent.append(str(DOCKER))
    if absent:
        return f"there is no {', '.join(absent)} here"
    return LocalKafka.missing()

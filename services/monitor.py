"""The monitor: everything that happens in the federation, as metrics, and as a live page on port 8090."""

import os
import sys

from services import serve

if __name__ == "__main__":
    os.environ.setdefault("LLMOS_DASHBOARD__HOST", "0.0.0.0")  # noqa: S104 (a container's own network)
    os.environ.setdefault("LLMOS_DASHBOARD__PORT", "8090")
    serve("monitor", sys.argv[1:])

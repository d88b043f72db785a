"""The monitor: everything that happens in the federation, as metrics, and as a live page on port 8090."""

import sys

from services import default, serve

if __name__ == "__main__":
    default("LLMOS_DASHBOARD__HOST", "0.0.0.0")  # noqa: S104 (a container's own network)
    default("LLMOS_DASHBOARD__PORT", "8090")
    serve("monitor", sys.argv[1:])

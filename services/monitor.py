"""The monitor: everything that happens in the federation, as metrics."""

import sys

from services import serve

if __name__ == "__main__":
    sys.exit(serve("monitor", sys.argv[1:]))

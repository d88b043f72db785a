"""The inference service: answers predictions on port 8000 with the versions of the federation."""

import os
import sys

from services import serve

if __name__ == "__main__":
    os.environ.setdefault("LLMOS_INFERENCE__HOST", "0.0.0.0")  # noqa: S104 (a container's own network)
    serve("serve", sys.argv[1:])

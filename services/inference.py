"""The inference service: answers predictions on port 8000 with the versions of the federation."""

import sys

from services import default, serve

if __name__ == "__main__":
    default("LLMOS_INFERENCE__HOST", "0.0.0.0")  # noqa: S104 (a container's own network)
    serve("serve", sys.argv[1:])

"""The evaluator: measures versions on held-out data."""

import sys

from services import serve

if __name__ == "__main__":
    serve("evaluate", sys.argv[1:])

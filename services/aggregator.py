"""The aggregator. Start a second one as a standby: it takes over when the first is gone."""

import sys

from services import serve

if __name__ == "__main__":
    serve("aggregator", sys.argv[1:])

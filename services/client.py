"""An edge agent: trains on the data mounted here, which stays here, and publishes updates."""

import sys

from services import serve

if __name__ == "__main__":
    serve("client", sys.argv[1:])

"""The archiver: keeps versions past the log's retention in the folder or object store mounted or named here."""

import sys

from services import serve

if __name__ == "__main__":
    serve("archive", sys.argv[1:])

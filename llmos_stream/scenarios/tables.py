"""The data that ship with the package: compressed, with known digests. Sources and licences: README.md."""

import csv
import gzip
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from llmos_stream.errors import TaskError

DIGESTS: Mapping[str, str] = {
    "heart": "0567c0a918ed3156172c95938a0a5d9447e655869e581f0ee833d84ba1bc5449",
    "lending": "93881e94de3c98a12e6c1611388a31d0eba9a5f918a918310ce09b200ba21a47",
    "sensors": "c756964cb5d4de8e20a205c696145c3ff118e11597eb9f1420633d26d04c6900",
    "speeches": "fd40cb1e9f498c4a77f26aa42b19d738c72e9149f99dfdd001f255e2ca890382",
}
"""SHA-256 of each, unpacked."""

Row = Mapping[str, str]


@cache
def read_table(name: str) -> Sequence[Row]:
    """The rows of a table, in its own order, each a text by column; gaps are empty.

    Raises:
        TaskError: The file is not as it was published.
    """
    return tuple(csv.DictReader(io.StringIO(_unpacked(name, f"{name}.csv.gz"))))


@cache
def read_lines(name: str) -> Sequence[Mapping[str, Any]]:
    """The objects of a file of JSON lines, in its own order.

    Raises:
        TaskError: The file is not as it was published.
    """
    # Only a line feed ends a line of JSON: `splitlines` would cut texts at other separators.
    return tuple(map(json.loads, io.StringIO(_unpacked(name, f"{name}.jsonl.gz"))))


def _unpacked(name: str, file: str) -> str:
    text = gzip.decompress((files("llmos_stream") / "scenarios" / "data" / file).read_bytes())
    if hashlib.sha256(text).hexdigest() != DIGESTS[name]:
        raise TaskError(f"the data of {name} are not those that the package came with: install it again")
    return text.decode()

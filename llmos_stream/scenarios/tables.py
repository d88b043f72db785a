"""The data that ship with the package: compressed CSV, whose digests are known. Sources and licences: README.md."""

import csv
import gzip
import hashlib
import io
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files

from llmos_stream.errors import TaskError

DIGESTS: Mapping[str, str] = {
    "heart": "0567c0a918ed3156172c95938a0a5d9447e655869e581f0ee833d84ba1bc5449",
    "lending": "93881e94de3c98a12e6c1611388a31d0eba9a5f918a918310ce09b200ba21a47",
}
"""SHA-256 of each table as CSV."""

Row = Mapping[str, str]


@cache
def read_table(name: str) -> Sequence[Row]:
    """The rows of a table, in its own order, each a text by column; gaps are empty.

    Raises:
        TaskError: The file is not as it was published.
    """
    packed = (files("llmos_stream") / "scenarios" / "data" / f"{name}.csv.gz").read_bytes()
    text = gzip.decompress(packed)
    if hashlib.sha256(text).hexdigest() != DIGESTS[name]:
        raise TaskError(f"the data of {name} are not those that the package came with: install it again")
    return tuple(csv.DictReader(io.StringIO(text.decode())))

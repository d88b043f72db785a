"""The long vectors of a client's state folder: each a safetensors file of one tensor, with a checksum of its elements.

The checksum guards against damage, not against malice.
"""

from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import orjson
import torch
from safetensors.torch import load_file
from torch import Tensor

from llmos_stream.codec import weights_digest
from llmos_stream.storage.durable import DurableFile
from llmos_stream.types import Part

_SUMS = "sums:"
_SUMMED = 8192  # bytes, so that a page of the disk that is not the newest spoils the sum of one or two blocks


@dataclass(frozen=True, slots=True)
class NamedFile:
    """A file that the state names (see `state`). No digest: of the first release. No base: of one before this."""

    file: str
    size: int
    digest: str | None
    payload: int | None = None
    base: int | None = None


def write_vector(path: Path, name: str, vector: Tensor, over: Path | None) -> NamedFile:
    """Write a flat float32 vector under its name, straight from its memory; in the place of `over`, where given."""
    elements = _bytes_of(vector)
    entry = {"dtype": "F32", "shape": list(vector.shape), "data_offsets": [0, len(elements)]}
    header = orjson.dumps({name: entry})
    header += b" " * (-len(header) % 8)
    file = DurableFile.create(path, over)
    file.write(len(header).to_bytes(8, "little") + header)
    file.write(elements)
    file.sync()
    return NamedFile(path.name, file.size, _sums(vector))


def read_vector(path: Path, name: str, named: NamedFile) -> Tensor:
    """The vector that was written.

    Raises:
        ValueError: The file is not what was written. SafetensorError, KeyError and OSError say so too.
    """
    if (size := path.stat().st_size) != named.size:
        raise ValueError(f"{size} bytes, not {named.size}")
    vector = load_file(path)[name].clone()  # for the file may be written over, and is mapped
    if named.digest is not None and _digest_like(named.digest, vector) != named.digest:
        raise ValueError("the elements do not match their digest")
    return vector


def _bytes_of(flat: Tensor) -> Part:
    elements = flat.detach().numpy()
    elements = elements.astype(elements.dtype.newbyteorder("<"), copy=False)
    return elements.data.cast("B") if elements.size else b""  # an empty view cannot be cast


def _digest_like(digest: str, vector: Tensor) -> str:
    # SHA-256, of a release before this one, took as long as half of the encoding.
    return _sums(vector) if digest.startswith(_SUMS) else weights_digest(vector).hex()


def _sums(vector: Tensor) -> str:
    """CRC-32 of the 64-bit sums of blocks, and of the elements after the last whole one: a tenth of CRC-32's time."""
    elements = _bytes_of(vector)
    whole = len(elements) // _SUMMED * _SUMMED
    blocks = vector.detach()[: whole // 4].view(torch.int64).view(-1, _SUMMED // 8)
    sums = blocks.sum(dim=1)  # of 64-bit integers: they wrap around
    return f"{_SUMS}{crc32(elements[whole:], crc32(_bytes_of(sums))):08x}"
